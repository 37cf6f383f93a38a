package api

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"codexpool/codex"
	"codexpool/upstream"

	"github.com/julienschmidt/httprouter"
	"golang.org/x/sync/singleflight"
)

// Models is the list of model names that are accepted, and what they mean.
type Models struct {
	Prefix  string        // the alias that is advertised: "codex-5", in dev "codev-5"
	Default string        // catalog id that the aliases mean
	Catalog []codex.Model // the models that the CLI lists
	Open    bool          // the upstream has models of its own: any name passes
	Refused []string      // reasoning efforts that the upstream refuses with every model
}

// aliases are accepted everywhere, whichever is advertised.
var aliases = []string{"codex-5", "codev-5"}

// efforts are accepted as a suffix or a parameter, beside those that the catalog
// lists. The provider rejects one that a model does not support.
var efforts = []string{"none", "minimal", "low", "medium", "high", "xhigh"}

// resolve finds the id and effort that name means.
func (m Models) resolve(name string) (id, effort string, ok bool) {
	if id, ok := m.known(name); ok {
		return id, "", true
	}
	if i := strings.LastIndexByte(name, '-'); i > 0 {
		suffix := strings.ToLower(name[i+1:])
		if id, ok := m.known(name[:i]); ok && slices.Contains(m.efforts(), suffix) {
			return id, suffix, true
		}
	}
	return name, "", m.Open && name != "" && utf8.RuneCountInString(name) <= maxName
}

// known finds an alias or an id, whatever its case.
func (m Models) known(name string) (id string, ok bool) {
	for _, alias := range aliases {
		if strings.EqualFold(name, alias) {
			return m.Default, true
		}
	}
	if strings.EqualFold(name, m.Default) {
		return m.Default, true
	}
	for _, model := range m.Catalog {
		if strings.EqualFold(name, model.ID) {
			return model.ID, true
		}
	}
	return "", false
}

// efforts lists the reasoning efforts that are accepted.
func (m Models) efforts() []string {
	list := slices.Clone(efforts)
	for _, model := range m.Catalog {
		for _, effort := range model.Efforts {
			if !slices.Contains(list, effort) {
				list = append(list, effort)
			}
		}
	}
	return slices.DeleteFunc(list, m.refuses)
}

// label is an id as metrics name it: of a closed list, whatever callers write.
func (m Models) label(id string) string {
	if slices.Contains(m.Labels(), id) {
		return id
	}
	return OtherModel
}

// OtherModel stands for all models that the CLI does not list.
const OtherModel = "other"

// Labels lists the models as metrics name them.
func (m Models) Labels() []string {
	labels := []string{OtherModel}
	for _, model := range m.Catalog {
		labels = append(labels, model.ID)
	}
	return labels
}

func (m Models) refuses(effort string) bool { return slices.Contains(m.Refused, effort) }

// advertised lists the aliases that are advertised.
func (m Models) advertised() []string {
	names := []string{m.Prefix}
	for _, model := range m.Catalog {
		if model.ID == m.Default {
			for _, e := range slices.DeleteFunc(slices.Clone(model.Efforts), m.refuses) {
				names = append(names, m.Prefix+"-"+e)
			}
		}
	}
	if m.Prefix != aliases[0] {
		names = append(names, aliases[0]) // the one that all examples have
	}
	return names
}

// names lists the ids of the catalog. The default may be none of it.
func (m Models) names() (names []string) {
	for _, model := range m.Catalog {
		names = append(names, model.ID)
	}
	if !slices.Contains(names, m.Default) {
		names = append(names, m.Default)
	}
	return names
}

type modelBody struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

func (s *Server) model(id string) modelBody {
	return modelBody{ID: id, Object: "model", Created: s.began.Unix(), OwnedBy: "codexpool"}
}

type modelList struct {
	Object string            `json:"object"`
	Data   []any             `json:"data"`
	Models []json.RawMessage `json:"models,omitempty"` // as the Codex CLI reads them
}

// listModels lists the models that the caller may use. A Codex CLI, which names its
// version, also gets what its own catalog says of them.
func (s *Server) listModels(res *response, r *http.Request) error {
	list := modelList{Object: "list", Data: []any{}}
	models := s.cfg.Models()
	if r.URL.Query().Has("client_version") {
		for _, m := range models.Catalog {
			if m.Entry != nil && res.caller.account.mayUse(models, m.ID) == nil {
				list.Models = append(list.Models, m.Entry)
			}
		}
	}
	names := models.advertised()
	others := s.providersModels(r.Context(), models)
	switch {
	case !s.asksProvider(models):
		names = append(names, models.names()...)
	case others == nil:
		names = append(names, models.Default)
	}
	for _, name := range names {
		if id, _, _ := models.resolve(name); res.caller.account.mayUse(models, id) == nil {
			list.Data = append(list.Data, s.model(name))
		}
	}
	for _, m := range others {
		if !slices.Contains(names, m.ID) && res.caller.account.mayUse(models, m.ID) == nil {
			list.Data = append(list.Data, m.Entry)
		}
	}
	s.cacheModels(res)
	return res.json(http.StatusOK, list)
}

func (s *Server) getModel(res *response, r *http.Request) error {
	name := strings.TrimPrefix(httprouter.ParamsFromContext(r.Context()).ByName("id"), "/") // ids of other upstreams have slashes
	models := s.cfg.Models()
	models.Open = s.asksProvider(models) // of a provider that we cannot ask, there are only those of the catalog
	var found any = s.model(name)
	id, _, ok := models.resolve(name)
	if others := s.providersModels(r.Context(), models); others != nil && (!ok || id != models.Default) {
		at := slices.IndexFunc(others, func(m upstream.Model) bool { return m.ID == name })
		if ok = at >= 0; ok {
			found = others[at].Entry
		}
	}
	if !ok {
		return modelNotFound(name)
	}
	if err := res.caller.account.mayUse(models, id); err != nil {
		return err
	}
	s.cacheModels(res)
	return res.json(http.StatusOK, found)
}

// modelCache keeps the provider's list of models for a minute.
type modelCache struct {
	asking singleflight.Group

	mu     sync.Mutex
	models []upstream.Model // nil = no list; guarded by mu
	until  time.Time        // guarded by mu
}

// asksProvider reports whether the provider has models of its own, and we can ask it.
func (s *Server) asksProvider(m Models) bool { return m.Open && s.relay != nil }

// providersModels is the list of a provider that has models of its own. It is nil
// where the provider is another, or has no list: then any name passes.
func (s *Server) providersModels(ctx context.Context, m Models) []upstream.Model {
	if !s.asksProvider(m) {
		return nil
	}
	c := &s.models
	c.mu.Lock()
	models, until := c.models, c.until
	c.mu.Unlock()
	if time.Now().Before(until) {
		return models
	}
	now, _, _ := c.asking.Do("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), modelsTimeout) // others wait for it too
		defer cancel()
		return s.askForModels(ctx), nil
	})
	return now.([]upstream.Model)
}

const (
	modelsTimeout = 5 * time.Second  // for the provider's list
	modelsLast    = 60 * time.Second // that a list is used
	modelsPause   = 5 * time.Second  // after a failure
)

// askForModels asks the provider for its list. Where that fails, the last list stays.
func (s *Server) askForModels(ctx context.Context) []upstream.Model {
	models, err := s.relay.Models(ctx)
	c := &s.models
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		s.log.Info("the provider's list of models", "err", err)
		c.until = time.Now().Add(modelsPause)
	} else {
		c.models, c.until = models, time.Now().Add(modelsLast)
	}
	return c.models
}

// cacheModels lets clients cache the list; shared caches only where no key is
// required.
func (s *Server) cacheModels(res *response) {
	scope := "public"
	if s.cfg.ProtectModels {
		scope = "private"
	}
	res.Header().Set("Cache-Control", scope+", max-age=60")
}
