package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// Models asks the provider for its list of models. Many providers have none.
func (r *Relay) Models(ctx context.Context) ([]Model, error) {
	res, err := r.requestModels(ctx)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", res.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxModels+1))
	if err != nil {
		return nil, err
	}
	var list struct{ Data []json.RawMessage }
	if len(body) > maxModels || json.Unmarshal(body, &list) != nil || list.Data == nil {
		return nil, errors.New("it is no list of models")
	}
	models := []Model{}
	for _, entry := range list.Data {
		var m struct{ ID string }
		if json.Unmarshal(entry, &m) == nil && m.ID != "" {
			models = append(models, Model{m.ID, entry})
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
	if err := r.authorize(req.Header); err != nil {
		return nil, err
	}
	return r.transport.RoundTrip(req)
}
