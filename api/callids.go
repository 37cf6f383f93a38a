package api

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// maxCallID is how long an id of a call may be in the Responses API.
const maxCallID = 64

// callIDs gives the calls of a conversation ids that a provider accepts: short ones,
// each once. Clients have others, such as the t:0 of each turn anew. A conversation that
// goes on keeps the ids that it had, so that it still begins as the provider's cache
// knows it.
type callIDs struct {
	taken map[string]bool   // the provider's ids
	tries map[string]int    // ids that were made of each of the caller's
	last  map[string]string // the provider's id of the last call with each of the caller's
}

func newCallIDs() callIDs {
	return callIDs{taken: map[string]bool{}, tries: map[string]int{}, last: map[string]string{}}
}

// assign returns the provider's id of the next call. given is the caller's.
func (ids callIDs) assign(given string) string {
	id := given
	for len(id) > maxCallID || ids.taken[id] {
		ids.tries[given]++
		sum := sha256.Sum256(fmt.Append(nil, ids.tries[given], " ", given))
		id = "call_" + hex.EncodeToString(sum[:16])
	}
	ids.taken[id], ids.last[given] = true, id
	return id
}
