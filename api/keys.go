package api

import (
	"crypto/rand"
	"crypto/sha256"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"codexpool/api/limits"
)

// Key is a key that a client may use, with its rights and limits.
type Key struct {
	Name              string            // in logs and metrics
	Digest            [sha256.Size]byte // of the key
	RequestsPerMinute int               // 0 = Config.Requests holds
	TokensPerMinute   int               // 0 = no limit
	Streams           int               // most open streams; 0 = no limit
	Models            []string          // that it may use; empty = all
	Routes            []string          // that it may use, by their names as rights; empty = all
	Refuse            []string          // that the Responses route refuses to it
	Expires           time.Time         // zero = never
}

// AuthFailures is the closed list of why a request has no valid key.
var AuthFailures = []string{"missing", "wrong", "expired", "throttled"} // throttled: its address has tried too many

// Caller identifies the sender of a request by its key. It holds no secret.
type Caller struct {
	Key     string   // the key's name; "" where no key is required
	account *account // nil where no key was looked at
}

// account is a key with what it has used. That part outlives a change of the key.
type account struct {
	Key
	*use
}

// use is what a key has used.
type use struct {
	limits  *limits.Account
	usage   usageCount
	streams atomic.Int64 // that are open
}

func newUse(name string, shared *limits.Redis) *use {
	return &use{limits: limits.NewAccount(name, shared)}
}

// set gives the limits of a key to what it uses.
func (u *use) set(key Key, requests limits.Rate) {
	if key.RequestsPerMinute > 0 {
		requests = limits.Rate{Most: key.RequestsPerMinute, Per: time.Minute}
	}
	tokens := limits.Rate{}
	if key.TokensPerMinute > 0 {
		tokens = limits.Rate{Most: key.TokensPerMinute, Per: time.Minute}
	}
	u.limits.Set(requests, tokens)
}

// keyring is the keys of now. It may be changed while requests are authenticated.
//
// A key is found by a digest of its digest and of a salt that only this process knows. So
// the time that a search takes says nothing about any key, however many there are: nobody
// can choose a key whose salted digest begins like that of another.
type keyring struct {
	open     bool        // no key is required
	requests limits.Rate // of keys that have none of their own
	shared   *limits.Redis
	salt     [sha256.Size]byte
	nobody   *account // the caller where no key is required

	changing sync.Mutex
	accounts atomic.Pointer[map[[sha256.Size]byte]*account]
}

func newKeyring(open bool, keys []Key, requests limits.Rate, shared *limits.Redis) *keyring {
	k := &keyring{open: open, requests: requests, shared: shared, nobody: &account{use: newUse("", shared)}}
	k.nobody.set(Key{}, requests)
	rand.Read(k.salt[:])
	k.accounts.Store(&map[[sha256.Size]byte]*account{})
	k.set(keys)
	return k
}

// set replaces the keys. A key keeps what it has used if its name stays.
func (k *keyring) set(keys []Key) {
	k.changing.Lock()
	defer k.changing.Unlock()
	before := map[string]*use{}
	for _, a := range *k.accounts.Load() {
		before[a.Name] = a.use
	}
	accounts := make(map[[sha256.Size]byte]*account, len(keys))
	for _, key := range keys {
		a := &account{Key: key, use: before[key.Name]}
		if a.use == nil {
			a.use = newUse(key.Name, k.shared)
		}
		a.use.set(key, k.requests)
		accounts[k.salted(key.Digest)] = a
	}
	k.accounts.Store(&accounts)
}

func (k *keyring) salted(digest [sha256.Size]byte) [sha256.Size]byte {
	return sha256.Sum256(append(k.salt[:], digest[:]...))
}

// names lists the names of the keys, in their order.
func (k *keyring) names() (names []string) {
	for _, a := range *k.accounts.Load() {
		names = append(names, a.Name)
	}
	slices.Sort(names)
	return names
}

// streams is how many streams each key has open, if any.
func (k *keyring) streams() map[string]int {
	open := map[string]int{}
	for _, a := range *k.accounts.Load() {
		if n := a.use.streams.Load(); n > 0 {
			open[a.Name] = int(n)
		}
	}
	return open
}

// authenticate returns the caller of a request, or rejects one without a valid key, where
// keys are required.
func (k *keyring) authenticate(r *http.Request) (Caller, error) {
	if k.open {
		return Caller{account: k.nobody}, nil
	}
	scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || key == "" {
		return Caller{}, errNoKey
	}
	a := (*k.accounts.Load())[k.salted(sha256.Sum256([]byte(strings.TrimSpace(key))))]
	switch {
	case a == nil:
		return Caller{}, errKey
	case !a.Expires.IsZero() && !time.Now().Before(a.Expires):
		return Caller{}, keyExpired(a.Expires)
	}
	return Caller{Key: a.Name, account: a}, nil
}

// may returns an error if the key has no right to use a route. right is the route's name
// in Key.Routes; "" needs none.
func (a *account) may(right string) error {
	if right == "" || len(a.Routes) == 0 || slices.Contains(a.Routes, right) {
		return nil
	}
	return errRoute
}

// mayUse returns an error if the key has no right to use a model. id is that of the
// catalog; the key names models as clients do.
func (a *account) mayUse(models Models, id string) error {
	if a == nil || len(a.Models) == 0 || slices.ContainsFunc(a.Models, func(name string) bool {
		allowed, _, _ := models.resolve(name)
		return strings.EqualFold(allowed, id)
	}) {
		return nil
	}
	return errModel
}
