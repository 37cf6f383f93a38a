package api

import (
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"codexpool/codex"

	"github.com/julienschmidt/httprouter"
)

// Models is the list of model names that are accepted, and what they mean.
type Models struct {
	Prefix  string        // the alias that is advertised: "codex-5", in dev "codev-5"
	Default string        // catalog id that the aliases mean
	Catalog []codex.Model // the models that the CLI lists
	Open    bool          // the upstream has models of its own: any name passes
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
		if id, ok := m.known(name[:i]); ok && m.effort(suffix) {
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

// effort reports whether the word is a reasoning effort.
func (m Models) effort(word string) bool {
	return slices.Contains(efforts, word) || slices.ContainsFunc(m.Catalog, func(model codex.Model) bool {
		return slices.Contains(model.Efforts, word)
	})
}

// names lists the advertised names, aliases first.
func (m Models) names() []string {
	names := []string{m.Prefix}
	for _, model := range m.Catalog {
		if model.ID == m.Default {
			for _, e := range model.Efforts {
				names = append(names, m.Prefix+"-"+e)
			}
		}
	}
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

// listModels lists the models that the caller may use.
func (s *Server) listModels(res *response, _ *http.Request) error {
	list := struct {
		Object string      `json:"object"`
		Data   []modelBody `json:"data"`
	}{Object: "list", Data: []modelBody{}}
	models := s.cfg.Models()
	for _, name := range models.names() {
		if id, _, _ := models.resolve(name); res.caller.account.mayUse(models, id) == nil {
			list.Data = append(list.Data, s.model(name))
		}
	}
	s.cacheModels(res)
	return res.json(http.StatusOK, list)
}

func (s *Server) getModel(res *response, r *http.Request) error {
	name := strings.TrimPrefix(httprouter.ParamsFromContext(r.Context()).ByName("id"), "/") // ids of other upstreams have slashes
	models := s.cfg.Models()
	id, _, ok := models.resolve(name)
	if !ok {
		return modelNotFound(name)
	}
	if err := res.caller.account.mayUse(models, id); err != nil {
		return err
	}
	s.cacheModels(res)
	return res.json(http.StatusOK, s.model(name))
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
