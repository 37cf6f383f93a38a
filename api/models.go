package api

import (
	"net/http"
	"slices"
	"strings"

	"codexpool/codex"

	"github.com/julienschmidt/httprouter"
)

// Models says which model names are taken and what they mean.
type Models struct {
	Prefix  string        // the alias that is advertised: "codex-5", in dev "codev-5"
	Default string        // catalog id that the aliases mean
	Catalog []codex.Model // what the CLI lists
	Open    bool          // the upstream has models of its own: any name passes
}

// aliases are accepted everywhere, whichever is advertised.
var aliases = []string{"codex-5", "codev-5"}

// efforts are taken as a suffix or a parameter, with whatever the catalog lists;
// one that a model does not support is the upstream's to refuse.
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
	return name, "", m.Open && name != ""
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

// listed is the id if the CLI lists it, "" otherwise: of a model that it does not
// know Codex has wrong ideas, such as how much it can take.
func (m Models) listed(id string) string {
	if slices.ContainsFunc(m.Catalog, func(model codex.Model) bool { return model.ID == id }) {
		return id
	}
	return ""
}

// effort says whether the word is a reasoning effort.
func (m Models) effort(word string) bool {
	return slices.Contains(efforts, word) || slices.ContainsFunc(m.Catalog, func(model codex.Model) bool {
		return slices.Contains(model.Efforts, word)
	})
}

// names lists what is advertised, aliases first.
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

func (s *Server) listModels(res *response, _ *http.Request) error {
	list := struct {
		Object string      `json:"object"`
		Data   []modelBody `json:"data"`
	}{Object: "list"}
	for _, name := range s.cfg.Models().names() {
		list.Data = append(list.Data, s.model(name))
	}
	s.cacheModels(res)
	return res.json(http.StatusOK, list)
}

func (s *Server) getModel(res *response, r *http.Request) error {
	name := strings.TrimPrefix(httprouter.ParamsFromContext(r.Context()).ByName("id"), "/") // ids of other upstreams have slashes
	if _, _, ok := s.cfg.Models().resolve(name); !ok {
		return modelNotFound(name)
	}
	s.cacheModels(res)
	return res.json(http.StatusOK, s.model(name))
}

// cacheModels lets the list be cached, but what wants a key not by others.
func (s *Server) cacheModels(res *response) {
	scope := "public"
	if s.cfg.ProtectModels {
		scope = "private"
	}
	res.Header().Set("Cache-Control", scope+", max-age=60")
}
