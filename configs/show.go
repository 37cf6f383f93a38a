package configs

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Setting is one row of the table of settings.
type Setting struct {
	Group      string `json:"group"`                 // what it belongs to
	Name       string `json:"name"`                  // the variable
	Value      string `json:"value"`                 // in effect, as the variable would be set; "(set)" for a secret
	Default    string `json:"default"`               // "" = none
	DevDefault string `json:"dev_default,omitempty"` // the default in dev; "" where it is the same
	Source     string `json:"source"`                // "default", "environment", or the path of the env file
	Meaning    string `json:"meaning"`               // one line
}

// Settings lists every setting with its value in effect, in the order of Config's
// fields. It returns nil where the sources could not be read.
func (c Config) Settings() []Setting {
	if c.sources == nil {
		return nil
	}
	value := reflect.ValueOf(c)
	var settings []Setting
	group := ""
	for _, f := range fields {
		name := f.Tag.Get("env")
		group = cmp.Or(f.Tag.Get("group"), group)
		s := Setting{
			Group:      group,
			Name:       name,
			Value:      format(value.FieldByIndex(f.Index).Interface()),
			Default:    f.Tag.Get("default"),
			DevDefault: f.Tag.Get("dev"),
			Source:     cmp.Or(c.sources[name], "default"),
			Meaning:    f.Tag.Get("mean"),
		}
		if s.Value != "" && (f.Tag.Get("secret") != "" || (name == "CODEX_UPSTREAM" && strings.ContainsAny(s.Value, "@?"))) {
			s.Value = "(set)" // a user, which is rejected, or a query may hold a secret
		}
		settings = append(settings, s)
	}
	return settings
}

// format writes a value as its variable would be set.
func format(v any) string {
	switch v := v.(type) {
	case time.Duration:
		return strconv.FormatInt(v.Milliseconds(), 10)
	case time.Time:
		if v.IsZero() {
			return ""
		}
		return v.Format(time.RFC3339)
	case []netip.Prefix:
		var list []string
		for _, network := range v {
			list = append(list, network.String())
		}
		return strings.Join(list, ",")
	case []string:
		return strings.Join(v, ",")
	}
	return fmt.Sprint(v)
}

// Secrets lists the variables whose value no child may get. OPENAI_API_KEY is not
// one of them, because Codex has a setting of that name too.
func Secrets() []string {
	var names []string
	for _, f := range fields {
		if name := f.Tag.Get("env"); f.Tag.Get("secret") != "" && name != "OPENAI_API_KEY" {
			names = append(names, name)
		}
	}
	return names
}

// Network lists the variables that configure the way to the network. They are not
// settings of codexpool: Go and Codex read them, from the environment only.
func Network() []string {
	return []string{
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
		"SSL_CERT_FILE", "SSL_CERT_DIR", "CODEX_CA_CERTIFICATE",
	}
}
