package api

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	htmltemplate "html/template"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"
	"unicode"

	"codexpool/runbooks"
	"codexpool/upstream"
)

// The page for a person, at GET / of the admin listener. status.html is what a browser
// gets, and status.txt, with the same, what curl gets.
var (
	//go:embed status.html
	statusHTML string
	//go:embed status.txt
	statusText string
	//go:embed status.css
	style string

	inHTML = htmltemplate.Must(htmltemplate.New("").Funcs(htmltemplate.FuncMap(shown)).Parse(statusHTML))
	inText = template.Must(template.New("").Funcs(shown).Parse(statusText))

	// A page may load nothing, run nothing, and have no style but ours.
	policy = fmt.Sprintf("default-src 'none'; style-src 'sha256-%s'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'", digest(style))
)

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// shown are how values are written.
var shown = template.FuncMap{
	"bytes":   func(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) },
	"number":  func(n float64) string { return strconv.FormatFloat(n, 'f', -1, 64) },
	"percent": func(part float64) string { return fmt.Sprintf("%.0f %%", part*100) },
	"seconds": func(s float64) string { return rounded(time.Duration(s * float64(time.Second))) },
	"rounded": rounded,
	"when":    func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") },
	"page":    func(of string) string { return pageOf[of] },
	"errorPage": func(code string) string {
		_, _, page := runbooks.Code(code)
		return cmp.Or(page, "Errors.md")
	},
	"join":  strings.Join,
	"style": func() htmltemplate.CSS { return htmltemplate.CSS(style) },
}

func rounded(d time.Duration) string {
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// Sources are what the admin listener shows beside the server's own figures.
type Sources struct {
	Version string                            // of the daemon
	Metrics http.Handler                      // for Prometheus
	Limits  func() map[upstream.Limit]float64 // that the provider reported last
}

// statusPage is what the page shows.
type statusPage struct {
	Pool
	Stat       Stat
	Version    string
	Now        time.Time
	Up         time.Duration
	QueueLimit int
	Keys       []keyRow
	Charts     []chart
	Problems   []problemRow
	Limits     []limitRow
	Troubles   []trouble
	Routes     string
}

// keyRow is what a key has in the pool now.
type keyRow struct {
	Name             string // "" where no key is required
	Waiting, Streams int
}

// showStatus answers with the page.
func (s *Server) showStatus(from Sources) handler {
	return func(res *response, r *http.Request) error {
		p := s.statusPage(from)
		if wantsHTML(r) {
			return res.html("status", p)
		}
		var b bytes.Buffer
		columns := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		if err := inText.Execute(columns, p); err != nil {
			return err
		}
		if err := columns.Flush(); err != nil {
			return err
		}
		return res.text(b.Bytes())
	}
}

func (s *Server) statusPage(from Sources) *statusPage {
	p := &statusPage{
		Pool: s.poolBody(), Stat: s.Stat(), Version: from.Version, Now: time.Now(), Up: time.Since(s.began),
		QueueLimit: s.cfg.MaxPlaces - s.pool.Stat().Size, Charts: s.history.charts(), Problems: s.history.errors(), Routes: adminIndex,
	}
	waiting, streams := s.pool.Waiting(), s.keys.streams()
	all := maps.Clone(waiting)
	maps.Copy(all, streams)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		p.Keys = append(p.Keys, keyRow{name, waiting[name], streams[name]})
	}
	if from.Limits != nil {
		p.Limits = limitRows(from.Limits())
	}
	p.Troubles = p.troubles()
	return p
}

// wantsHTML reports whether a browser asks.
func wantsHTML(r *http.Request) bool { return strings.Contains(r.Header.Get("Accept"), "text/html") }

// html answers with a template of status.html.
func (res *response) html(name string, data any) error {
	var b bytes.Buffer
	if err := inHTML.ExecuteTemplate(&b, name, data); err != nil {
		return err
	}
	h := res.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", policy)
	h.Set("Referrer-Policy", "no-referrer")
	res.fresh()
	return res.send(b.Bytes())
}

// text answers with a text, without what would move the cursor of a terminal.
func (res *response) text(text []byte) error {
	res.Header().Set("Content-Type", "text/plain; charset=utf-8")
	res.fresh()
	return res.send(bytes.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, text))
}

// fresh has nobody keep an answer, which depends on who asks.
func (res *response) fresh() {
	res.Header().Set("Cache-Control", "no-store")
	res.Header().Set("Vary", "Accept")
	res.Header().Set("X-Content-Type-Options", "nosniff")
}

// showRunbook answers with a page of what to do about a trouble.
func (s *Server) showRunbook(res *response, r *http.Request) error {
	name := cmp.Or(r.PathValue("page"), "README.md")
	text, err := runbooks.Text(name)
	if err != nil {
		return errNotFound
	}
	if !wantsHTML(r) {
		return res.text(text)
	}
	body, err := runbooks.HTML(text)
	if err != nil {
		return err
	}
	return res.html("runbook", map[string]any{"Title": name, "Body": body})
}

// State is what the daemon is in.
func (p *statusPage) State() State { return p.Stat.State }

// Codex is the version of the CLI that the newest child was started from.
func (p *statusPage) Codex() string {
	if len(p.Children) == 0 {
		return ""
	}
	return p.Children[len(p.Children)-1].Version
}

// Does says what a child is doing.
func (c childBody) Does() string {
	var does []string
	if t := c.Turn; t != nil {
		does = append(does, fmt.Sprintf("runs a turn for %s", rounded(time.Since(t.Since))))
	} else if c.State == "leased" {
		does = append(does, "is being made ready for the next turn")
	} else {
		does = append(does, doing[c.State])
	}
	if c.Worn != "" {
		does = append(does, "is to be replaced ("+c.Worn+")")
	}
	if c.Probe != nil && c.Probe.Error != "" {
		does = append(does, "did not answer its last probe: "+c.Probe.Error)
	}
	return strings.Join(does, "; ")
}

// doing is what children do that run no turn.
var doing = map[string]string{
	"idle": "waits for a request", "probing": "answers a probe", "late": "has not answered its probe in time", "leaving": "is being stopped",
}
