package grafana

// All lists the dashboards. Their order on a page is that of the questions of an incident.
var All = []Dashboard{overview, children, requests}

var overview = Dashboard{
	UID: "codexpool-overview", Title: "codexpool / Overview", About: "Is it up, fast, full, and whose fault is it?",
	Rows: []Row{
		{"Up", []Panel{
			{
				Title: "Ready replicas", Type: Stat, Unit: "none", Runbook: "Unavailable.md",
				About:   "Replicas that take completions, and all that are scraped. Fewer than all: see their states.",
				Queries: []Query{{"ready", `sum(codexpool_state{state="ready",$M})`}, {"all", `count(codexpool_build_info{$M})`}},
			},
			{
				Title: "Alerts that fire", Type: Stat, Unit: "none", Line: 1, Runbook: "README.md",
				About:   "Alerts of codexpool, without the watchdog, that Prometheus has firing.",
				Queries: one("alerts", `count(ALERTS{alertstate="firing",alertname=~"Codexpool.+",severity!="none"}) or vector(0)`),
			},
			{
				Title: "Error budget left, 30 days", Type: Stat, Unit: "percentunit", Runbook: "ErrorBudgetBurn.md",
				About:   "What is left of the 0.1 % of completions that may fail. Below 0 the objective is missed.",
				Queries: one("left", `1 - (sum(increase(codexpool_completions_total{outcome="failed",$M}[30d])) / (sum(increase(codexpool_completions_total{outcome=~"ok|failed",$M}[30d])) > 0)) / 0.001`),
			},
			{
				Title: "Completions now", Type: Stat, Unit: "reqps", Runbook: "EdgeErrors.md",
				About:   "Completions a second that ended. None where there should be some: the edge sends them elsewhere.",
				Queries: one("completions", `sum(`+rate(`codexpool_completions_total{$M}`)+`)`),
			},
			{
				Title: "State", Type: Timeline, Unit: "none", Runbook: "Unavailable.md",
				About:   "The state of each replica. Anything but ready takes no completions.",
				Queries: one("{{instance}} {{state}}", `max by (instance, state) (codexpool_state{$M}) == 1`),
			},
			{
				Title: "Versions", Type: Table, Unit: "none", Runbook: "Rollback.md",
				About:   "Replicas by version of codexpool and of the Codex CLI. Several rows outside of a rollout: one was forgotten.",
				Queries: one("", `count by (version, codex_version) (codexpool_build_info{$M})`),
			},
			{
				Title: "Completions by outcome", Type: Series, Unit: "reqps", Stacked: true, Runbook: "ErrorBudgetBurn.md",
				About:   "How completions end. Only failed counts against the objective.",
				Queries: one("{{outcome}}", `sum by (outcome) (`+rate(`codexpool_completions_total{$M}`)+`)`),
			},
		}},
		{"Fast", []Panel{
			{
				Title: "Time to first token", Type: Series, Unit: "s", Line: 2, Runbook: "FirstTokenSlow.md",
				About:   "Of streams. The objective: 95 % within 2 s.",
				Queries: quantiles("codexpool_time_to_first_token_seconds", `stream="true",`),
			},
			{
				Title: "Where the first token's time goes, p95", Type: Series, Unit: "s", Runbook: "FirstTokenSlow.md",
				About: "In the queue: too few children. At the provider: it is slow. Ours: the machine is starved.",
				Queries: []Query{
					{"queue", quantile(.95, "codexpool_pool_acquire_wait_seconds", "")},
					{"provider", quantile(.95, "codexpool_upstream_first_token_seconds", "")},
					{"ours", quantile(.95, "codexpool_overhead_seconds", "")},
				},
			},
			{
				Title: "Late first tokens", Type: Series, Unit: "percentunit", Line: .05, Runbook: "FirstTokenSlow.md",
				About:   "Streams whose first token took more than 2 s. Above the line the objective is missed.",
				Queries: one("late", `1 - sum(`+rate(`codexpool_time_to_first_token_seconds_bucket{stream="true",le=~"2(\\.0)?",$M}`)+`) / (sum(`+rate(`codexpool_time_to_first_token_seconds_count{stream="true",$M}`)+`) > 0)`),
			},
			{
				Title: "Time between tokens", Type: Series, Unit: "s", Runbook: "UpstreamFails.md",
				About:   "Of streams. It is the provider's, unless the machine is starved.",
				Queries: quantiles("codexpool_time_per_output_token_seconds", ""),
			},
			{
				Title: "Short answers in one piece", Type: Series, Unit: "s", Line: 5, Runbook: "FirstTokenSlow.md",
				About:   "To prompts of at most 512 tokens. The objective: 95 % within 5 s.",
				Queries: quantiles("codexpool_short_answer_seconds", ""),
			},
			{
				Title: "Longest silence of a turn", Type: Series, Unit: "s", Runbook: "ChildWedged.md",
				About:   "Of all turns that run. It grows second by second: a stream is stuck.",
				Queries: one("{{instance}}", `max by (instance) (codexpool_turn_silence_seconds{$M})`),
			},
		}},
		{"Full", []Panel{
			{
				Title: "Children by state", Type: Series, Unit: "none", Stacked: true, Runbook: "PoolSaturated.md",
				About:   "All leased: the pool is full. Late: they do not answer. Less than the size: they cannot be started.",
				Queries: one("{{state}}", `sum by (state) (codexpool_pool_children{$M})`),
			},
			{
				Title: "In the queue", Type: Series, Unit: "none", Runbook: "PoolSaturated.md",
				About: "The true mean between two scrapes, the most of all scrapes, and the limit.",
				Queries: []Query{
					{"mean", `sum(` + rate(`codexpool_pool_acquire_wait_seconds_sum{$M}`) + `)`},
					{"most", `sum(max_over_time(codexpool_pool_waiting{$M}[$__rate_interval]))`},
					{"limit", `sum(codexpool_pool_waiting_limit{$M})`},
				},
			},
			{
				Title: "Streams", Type: Series, Unit: "none", Stacked: true, Runbook: "StreamsNearLimit.md",
				About:   "Those that wait have had no child yet.",
				Queries: one("{{state}}", `sum by (state) (codexpool_sse_streams{$M})`),
			},
			{
				Title: "Turned away", Type: Series, Unit: "percentunit", Line: .01, Runbook: "PoolSaturated.md",
				About:   "Requests for a child that got none, because the queue was full or they waited too long.",
				Queries: one("turned away", `sum(`+rate(`codexpool_pool_acquires_total{outcome=~"full|timeout",$M}`)+`) / (sum(`+rate(`codexpool_pool_acquires_total{$M}`)+`) > 0)`),
			},
			{
				Title: "Failures by fault", Type: Series, Unit: "reqps", Stacked: true, Runbook: "ErrorBudgetBurn.md",
				About:   "Whose fault it is: the provider's, a child's, or that there is no room.",
				Queries: one("{{fault}}", `sum by (fault) (`+rate(`codexpool_http_errors_total{fault!~"client|limit",$M}`)+`)`),
			},
			{
				Title: "Provider's usage windows", Type: Series, Unit: "percentunit", Line: .9, Runbook: "UpstreamLimits.md",
				About:   "What is used of the windows of a ChatGPT login. At 100 % it rejects everything until the window ends.",
				Queries: one("{{window}}", `max by (window) (codexpool_upstream_window_used_ratio{$M})`),
			},
		}},
	},
}

var children = Dashboard{
	UID: "codexpool-pool", Title: "codexpool / Pool", About: "Do children live, and what do they take?",
	Rows: []Row{
		{"Lives", []Panel{
			{
				Title: "Children by state and replica", Type: Series, Unit: "none", Runbook: "PoolSaturated.md",
				About:   "A replica that lies below the others has children that cannot be started.",
				Queries: one("{{instance}} {{state}}", `sum by (instance, state) (codexpool_pool_children{$M})`),
			},
			{
				Title: "Deaths by reason", Type: Series, Unit: "none", Stacked: true, Runbook: "ChildrenCrash.md",
				About:   "Turns, age, recycled and shutdown are upkeep. Memory: they grow. The others are faults.",
				Queries: one("{{reason}}", `sum by (reason) (increase(codexpool_child_deaths_total{$M}[$__rate_interval]))`),
			},
			{
				Title: "Deaths that a caller felt", Type: Series, Unit: "none", Stacked: true, Runbook: "ChildrenCrash.md",
				About:   "Children that died in their turn.",
				Queries: one("{{reason}}", `sum by (reason) (increase(codexpool_child_deaths_in_turn_total{$M}[$__rate_interval]))`),
			},
			{
				Title: "Starts", Type: Series, Unit: "none", Stacked: true, Runbook: "ChildStartsFail.md",
				About:   "Children that were started, and that could not be.",
				Queries: one("{{outcome}}", `sum by (outcome) (increase(codexpool_child_starts_total{$M}[$__rate_interval]))`),
			},
			{
				Title: "Time until a child is warm", Type: Series, Unit: "s", Runbook: "MachineStarved.md",
				About:   "Long: the machine has too little CPU, or its disk is slow.",
				Queries: quantiles("codexpool_child_start_seconds", ""),
			},
			{
				Title: "Probes", Type: Series, Unit: "s", Line: .2, Runbook: "MachineStarved.md",
				About:   "Time that idle children took to answer. Above the line they are late, and are not lent.",
				Queries: quantiles("codexpool_child_probe_seconds", ""),
			},
			{
				Title: "Probes by outcome", Type: Series, Unit: "none", Stacked: true, Runbook: "ChildWedged.md",
				About:   "Errors: children hang.",
				Queries: one("{{outcome}}", `sum by (outcome) (increase(codexpool_child_probes_total{$M}[$__rate_interval]))`),
			},
			{
				Title: "Second tries", Type: Series, Unit: "none", Runbook: "ChildrenCrash.md",
				About:   "Requests that ran again on another child: crashes that no caller felt.",
				Queries: one("retries", `sum(increase(codexpool_turn_retries_total{$M}[$__rate_interval]))`),
			},
		}},
		{"Capacity", []Panel{
			{
				Title: "Time that a child is held", Type: Series, Unit: "s", Runbook: "PoolSaturated.md",
				About:   "For a completion. The pool takes its size divided by the mean of this, a second.",
				Queries: append(quantiles("codexpool_pool_lease_seconds", ""), Query{"mean", `sum(` + rate(`codexpool_pool_lease_seconds_sum{$M}`) + `) / (sum(` + rate(`codexpool_pool_lease_seconds_count{$M}`) + `) > 0)`}),
			},
			{
				Title: "Utilisation", Type: Series, Unit: "percentunit", Line: .8, Runbook: "PoolSaturated.md",
				About:   "The part of the pool that is held. Above the line requests wait.",
				Queries: one("held", `sum(`+rate(`codexpool_pool_lease_seconds_sum{$M}`)+`) / sum(codexpool_pool_size{$M})`),
			},
			{
				Title: "Requests for a child", Type: Series, Unit: "reqps", Stacked: true, Runbook: "PoolSaturated.md",
				About:   "Full, timeout and unavailable got none.",
				Queries: one("{{outcome}}", `sum by (outcome) (`+rate(`codexpool_pool_acquires_total{$M}`)+`)`),
			},
		}},
		{"Machine", []Panel{
			{
				Title: "Memory", Type: Series, Unit: "bytes", Runbook: "ChildMemoryGrows.md",
				About: "Private memory of all children, of the largest, its limit, and the daemon's.",
				Queries: []Query{
					{"children", `sum(codexpool_pool_memory_bytes{$M})`},
					{"largest child", `max(codexpool_pool_child_memory_max_bytes{$M})`},
					{"limit of a child", `max(codexpool_child_memory_limit_bytes{$M})`},
					{"daemon", `sum(process_resident_memory_bytes{$M} and on (job, instance) codexpool_build_info{$M})`},
				},
			},
			{
				Title: "CPU of the daemon", Type: Series, Unit: "none", Runbook: "MachineStarved.md",
				About:   "In cores, without that of its children.",
				Queries: one("{{instance}}", `sum by (instance) (`+rate(`process_cpu_seconds_total{$M}`)+` and on (job, instance) codexpool_build_info{$M})`),
			},
			{
				Title: "Descriptors", Type: Series, Unit: "percentunit", Line: .8, Runbook: "FileDescriptors.md",
				About:   "At 100 % nobody is accepted, and no child is started.",
				Queries: one("{{instance}}", `max by (instance) (process_open_fds{$M} / process_max_fds{$M} and on (job, instance) codexpool_build_info{$M})`),
			},
			{
				Title: "Connections", Type: Series, Unit: "percentunit", Line: .9, Runbook: "FileDescriptors.md",
				About:   "Of those that the public listener may have. At 100 % others wait in the kernel.",
				Queries: one("{{instance}}", `max by (instance) (codexpool_http_connections{$M,listener="public"} / ignoring (listener) codexpool_http_connections_limit{$M})`),
			},
			{
				Title: "Disk of the children's homes", Type: Series, Unit: "bytes", Runbook: "DiskFull.md",
				About:   "What is free. Without it no child can be started.",
				Queries: one("{{instance}}", `min by (instance) (codexpool_workdir_free_bytes{$M})`),
			},
			{
				Title: "Goroutines", Type: Series, Unit: "none", Runbook: "Down.md",
				About:   "They grow with open streams, and fall with them. If they do not fall, something leaks.",
				Queries: one("{{instance}}", `sum by (instance) (go_goroutines{$M} and on (job, instance) codexpool_build_info{$M})`),
			},
		}},
	},
}

var requests = Dashboard{
	UID: "codexpool-requests", Title: "codexpool / Requests", About: "What is asked, by whom, how does it end, and what does the provider say?",
	Rows: []Row{
		{"Requests", []Panel{
			{
				Title: "Requests by route and status", Type: Series, Unit: "reqps", Stacked: true, Runbook: "EdgeErrors.md",
				About:   "Unmatched: an edge or a client has a wrong path.",
				Queries: one("{{route}} {{code}}", `sum by (route, code) (`+rate(`codexpool_http_requests_total{$M}`)+`) > 0`),
			},
			{
				Title: "Errors", Type: Table, Unit: "none", Runbook: "ErrorBudgetBurn.md",
				About:   "Of the last hour, the most frequent first, with whose fault they are.",
				Queries: one("", `sort_desc(sum by (error, fault) (increase(codexpool_http_errors_total{$M}[1h])) > 0)`),
			},
			{
				Title: "Requests that run", Type: Series, Unit: "none", Runbook: "PoolSaturated.md",
				About:   "By route.",
				Queries: one("{{route}}", `sum by (route) (codexpool_http_requests_in_flight{route=~"chat|completions|responses",$M})`),
			},
			{
				Title: "Duration of streams", Type: Series, Unit: "s", Runbook: "Timeouts.md",
				About:   "Mostly the length of their answers.",
				Queries: quantiles("codexpool_http_request_duration_seconds", `stream="true",`),
			},
			{
				Title: "Duration of answers in one piece", Type: Series, Unit: "s", Runbook: "Timeouts.md",
				About:   "Mostly their length.",
				Queries: quantiles("codexpool_http_request_duration_seconds", `stream="false",`),
			},
			{
				Title: "First tokens", Type: Heatmap, Unit: "s", Runbook: "FirstTokenSlow.md",
				About:   "How many streams had their first token within which time. Two bands: two kinds of requests.",
				Queries: one("{{le}}", `sum by (le) (increase(codexpool_time_to_first_token_seconds_bucket{stream="true",$M}[$__rate_interval]))`),
			},
			{
				Title: "What made a stream begin", Type: Series, Unit: "reqps", Stacked: true, Runbook: "FirstTokenSlow.md",
				About:   "Timer: the model was slow, and a failure after that could be no HTTP status.",
				Queries: one("{{by}}", `sum by (by) (`+rate(`codexpool_sse_commits_total{$M}`)+`)`),
			},
			{
				Title: "Keepalives", Type: Series, Unit: "cps", Runbook: "ChildWedged.md",
				About:   "Comments to streams in a silence of the model.",
				Queries: one("keepalives", `sum(`+rate(`codexpool_sse_keepalives_total{$M}`)+`)`),
			},
		}},
		{"Tokens", []Panel{
			{
				Title: "Tokens by kind", Type: Series, Unit: "cps", Runbook: "UpstreamLimits.md",
				About: "A second. Cached ones are a part of input, reasoning ones of output.",
				Queries: []Query{
					{"input", `sum(` + rate(`codexpool_input_tokens_total{$M}`) + `)`},
					{"cached", `sum(` + rate(`codexpool_cached_input_tokens_total{$M}`) + `)`},
					{"output", `sum(` + rate(`codexpool_output_tokens_total{$M}`) + `)`},
					{"reasoning", `sum(` + rate(`codexpool_reasoning_tokens_total{$M}`) + `)`},
				},
			},
			{
				Title: "Cached part of the input", Type: Series, Unit: "percentunit", Runbook: "UpstreamLimits.md",
				About:   "Low, where requests begin alike: the provider's cache is missed, which costs time and money.",
				Queries: one("cached", `sum(`+rate(`codexpool_cached_input_tokens_total{$M}`)+`) / (sum(`+rate(`codexpool_input_tokens_total{$M}`)+`) > 0)`),
			},
			{
				Title: "Output by model", Type: Series, Unit: "cps", Stacked: true, Runbook: "UpstreamLimits.md",
				About:   "Tokens a second.",
				Queries: one("{{model}}", `sum by (model) (`+rate(`codexpool_output_tokens_total{$M}`)+`)`),
			},
		}},
		{"Provider", []Panel{
			{
				Title: "Requests to the provider", Type: Series, Unit: "reqps", Stacked: true, Runbook: "UpstreamFails.md",
				About:   "By status; 0 is no answer.",
				Queries: one("{{code}}", `sum by (code) (`+rate(`codexpool_upstream_requests_total{$M}`)+`)`),
			},
			{
				Title: "Warm connections", Type: Series, Unit: "percentunit", Runbook: "UpstreamFails.md",
				About:   "The part of requests that needed no new one. Low: something between closes them.",
				Queries: one("warm", `sum(`+rate(`codexpool_upstream_requests_total{connection="warm",$M}`)+`) / (sum(`+rate(`codexpool_upstream_requests_total{$M}`)+`) > 0)`),
			},
			{
				Title: "Provider's first token", Type: Series, Unit: "s", Runbook: "UpstreamFails.md",
				About:   "From the request until the first piece of the answer.",
				Queries: quantiles("codexpool_upstream_first_token_seconds", ""),
			},
			{
				Title: "Second tries at the provider", Type: Series, Unit: "reqps", Runbook: "UpstreamFails.md",
				About:   "Failures that no caller felt.",
				Queries: one("retries", `sum(`+rate(`codexpool_upstream_retries_total{$M}`)+`)`),
			},
			{
				Title: "Rate limits, what remains", Type: Series, Unit: "percentunit", Runbook: "UpstreamLimits.md",
				About:   "Of the provider's limits on requests and tokens, as it reports them.",
				Queries: one("{{unit}}", `min by (unit) (codexpool_upstream_ratelimit_remaining{$M} / codexpool_upstream_ratelimit_limit{$M})`),
			},
			{
				Title: "Time until usage windows end", Type: Series, Unit: "s", Runbook: "UpstreamLimits.md",
				About:   "Of a ChatGPT login. Used up before that: everything is rejected until then.",
				Queries: one("{{window}}", `max by (window) (codexpool_upstream_window_reset_timestamp_seconds{$M}) - time()`),
			},
		}},
		{"Callers", []Panel{
			{
				Title: "Keys by requests", Type: Series, Unit: "reqps", Runbook: "PoolSaturated.md",
				About:   "The ten with most. One far above the others floods.",
				Queries: one("{{key}}", `topk(10, sum by (key) (`+rate(`codexpool_key_requests_total{$M}`)+`))`),
			},
			{
				Title: "Keys by tokens", Type: Series, Unit: "cps", Runbook: "UpstreamLimits.md",
				About:   "The ten with most, input and output together.",
				Queries: one("{{key}}", `topk(10, sum by (key) (`+rate(`codexpool_key_tokens_total{type=~"input|output",$M}`)+`))`),
			},
			{
				Title: "Keys by streams", Type: Series, Unit: "none", Runbook: "StreamsNearLimit.md",
				About:   "The ten with most.",
				Queries: one("{{key}}", `topk(10, sum by (key) (codexpool_key_streams{$M}))`),
			},
			{
				Title: "Keys in the queue", Type: Series, Unit: "none", Runbook: "PoolSaturated.md",
				About:   "The ten with most. Keys are served in turn, so that one that floods delays itself.",
				Queries: one("{{key}}", `topk(10, sum by (key) (codexpool_key_waiting{$M}))`),
			},
			{
				Title: "Wrong keys", Type: Series, Unit: "reqps", Runbook: "Keys.md",
				About:   "Many at once: a key was rotated, or somebody guesses.",
				Queries: one("401", `sum(`+rate(`codexpool_http_errors_total{error="invalid_api_key",$M}`)+`)`),
			},
			{
				Title: "ForwardAuth", Type: Series, Unit: "reqps", Stacked: true, Runbook: "ForwardAuth.md",
				About:   "What an edge was answered. Bypassed: everyone passes.",
				Queries: one("{{result}}", `sum by (result) (`+rate(`codexpool_forwardauth_requests_total{$M}`)+`)`),
			},
			{
				Title: "CORS", Type: Series, Unit: "reqps", Stacked: true, Runbook: "CORS.md",
				About:   "Requests of web pages of other origins. Refused: an origin is not listed.",
				Queries: one("{{kind}} {{result}}", `sum by (kind, result) (`+rate(`codexpool_cors_requests_total{$M}`)+`)`),
			},
		}},
	},
}
