package upstream

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
)

// maxModels is the longest list of models that is read, in bytes.
const maxModels = 4 << 20

// Model is a model that the provider lists.
type Model struct {
	ID    string
	Entry json.RawMessage // of the list, as the provider wrote it
}

// Models asks the provider for its list of models, over the same transport and with the
// same credential as a completion. It costs nothing. Many providers have no list. Where the
// provider answers otherwise, the error is a [*Failure].
func (r *Relay) Models(ctx context.Context) ([]Model, error) {
	res, err := r.requestModels(ctx)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, r.readFailure(ctx, res)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxModels+1))
	if err != nil {
		return nil, err
	}
	var list struct{ Data, Models []json.RawMessage } // the second is that of a ChatGPT login
	if len(body) > maxModels || json.Unmarshal(body, &list) != nil || list.Data == nil && list.Models == nil {
		return nil, &Failure{Status: res.StatusCode, Cause: errors.New("its answer is no list of models")}
	}
	models := []Model{}
	for _, entry := range append(list.Data, list.Models...) {
		var m struct{ ID, Slug string }
		if json.Unmarshal(entry, &m) == nil && cmp.Or(m.ID, m.Slug) != "" {
			models = append(models, Model{cmp.Or(m.ID, m.Slug), entry})
		}
	}
	return models, nil
}

// requestModels requests the list of models.
func (r *Relay) requestModels(ctx context.Context) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.provider.Base.JoinPath("models").String(), nil)
	if err != nil {
		return nil, err
	}
	r.introduce(req)
	if err := r.authorize(req.Header); err != nil {
		return nil, err
	}
	return r.transport.RoundTrip(req)
}
