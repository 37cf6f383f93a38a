{{- define "codexpool.name" -}}
{{- .Values.nameOverride | default .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "codexpool.selector" -}}
app.kubernetes.io/name: codexpool
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "codexpool.labels" -}}
{{ include "codexpool.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "codexpool.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* Memory in Mi: a child's own, and what all share with the daemon. */ -}}
{{- define "codexpool.memory" -}}
{{- add (mul 35 (int .Values.settings.POOL_SIZE)) 140 -}}
{{- end -}}

{{- /* The same where each child is as large as it may be, and so are all bodies together. */ -}}
{{- define "codexpool.memoryLimit" -}}
{{- $child := div (int64 .Values.settings.POOL_MAX_CHILD_BYTES) 1048576 -}}
{{- $bodies := div (int64 .Values.settings.PROXY_MAX_BODY_TOTAL_BYTES) 1048576 -}}
{{- add (mul $child (int .Values.settings.POOL_SIZE)) 140 $bodies -}}
{{- end -}}

{{- /* The homes of children grow to 22 MB each. */ -}}
{{- define "codexpool.homes" -}}
{{- add (mul 22 (int .Values.settings.POOL_SIZE)) 64 -}}
{{- end -}}

{{- /* Until running turns have ended: then Kubernetes may kill. */ -}}
{{- define "codexpool.grace" -}}
{{- add (div (add (int .Values.settings.PROXY_PRESTOP_MS) (int .Values.settings.PROXY_DRAIN_MS) 999) 1000) 15 -}}
{{- end -}}

{{- /* Children that a replica may be asked for before there is another. */ -}}
{{- define "codexpool.threshold" -}}
{{- mulf (float64 .Values.settings.POOL_SIZE) .Values.autoscaling.utilization -}}
{{- end -}}

{{- define "codexpool.scaleBehavior" -}}
scaleUp:
  policies:
    - {type: Pods, value: 2, periodSeconds: 60}
scaleDown: # a stream may last long, and each replica that goes takes its warm children along
  stabilizationWindowSeconds: 900
  policies:
    - {type: Pods, value: 1, periodSeconds: 300}
{{- end -}}
