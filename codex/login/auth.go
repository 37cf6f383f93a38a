package login

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"
)

const (
	authName = "auth.json"

	margin = 24 * time.Hour     // before the access token expires; or in the middle of its life, if that is later
	stale  = 7 * 24 * time.Hour // after the last refresh, in any case; Codex itself refreshes after 8 days
)

// auth is the content of an auth.json: the fields that we read, and the whole.
type auth struct {
	whole    json.RawMessage
	tokens   tokens
	account  string    // "" where neither the file nor the token names it
	region   string    // in which the provider must compute; "" where it is not bound to one
	renewed  time.Time // by our clock
	issued   time.Time // of the access token; renewed where the token has no such time
	expires  time.Time // of the access token, by our clock; zero where the token has no such time
	rejected bool      // the provider rejected the access token
}

type tokens struct {
	Access  string `json:"access_token"`
	Refresh string `json:"refresh_token"`
	Account string `json:"account_id"`
}

// readAuth reads an auth.json. The error is ErrNone where it holds no ChatGPT login.
func readAuth(path string) (auth, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return auth{}, ErrNone
	}
	if err != nil {
		return auth{}, err
	}
	var f struct {
		Tokens      tokens    `json:"tokens"`
		LastRefresh time.Time `json:"last_refresh"`
	}
	if err := json.Unmarshal(data, &f); err != nil {
		return auth{}, errors.New("auth.json is not what Codex writes") // the cause would quote it
	}
	if f.Tokens.Access == "" || f.Tokens.Refresh == "" {
		return auth{}, ErrNone
	}
	a := auth{whole: data, tokens: f.Tokens, renewed: f.LastRefresh}
	c := claimsOf(f.Tokens.Access)
	a.issued, a.expires, a.region = unix(c.Issued), unix(c.Expires), c.region()
	a.account = cmp.Or(f.Tokens.Account, c.Auth.Account)
	if a.issued.IsZero() {
		a.issued = a.renewed
	}
	// The token has the times of the provider's clock. Where our clock is ahead, a
	// good token must not look expired. The provider rejects a bad one anyway.
	if ours := a.renewed.Add(a.expires.Sub(a.issued)); !a.expires.IsZero() && !a.renewed.IsZero() && ours.After(a.expires) {
		a.issued, a.expires = a.renewed, ours
	}
	return a, nil
}

// claims are what we read of an access token, which is a JWT.
type claims struct {
	Issued  int64 `json:"iat"`
	Expires int64 `json:"exp"`
	Auth    struct {
		Account   string `json:"chatgpt_account_id"`
		Residency string `json:"chatgpt_compute_residency"`
	} `json:"https://api.openai.com/auth"`
	Residency string `json:"chatgpt_compute_residency"`
}

// claimsOf reads the claims of a token; what it lacks is zero. It does not verify the
// signature: that is the provider's part.
func claimsOf(token string) (c claims) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(payload, &c) != nil {
		return claims{}
	}
	return c
}

func (c claims) region() string {
	region := cmp.Or(c.Auth.Residency, c.Residency)
	if region == "no_constraint" {
		return ""
	}
	return region
}

// unix is the zero time for a claim that is not there.
func unix(seconds int64) time.Time {
	if seconds <= 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0)
}

// usable is an error once the access token has expired.
func (a auth) usable() error {
	if !a.expires.IsZero() && time.Now().After(a.expires) {
		return errors.New("the login has expired")
	}
	return nil
}

// due reports whether it is time for a refresh.
func (a auth) due(now time.Time) bool {
	if a.rejected {
		return true
	}
	if a.expires.IsZero() {
		return now.Sub(a.renewed) > stale
	}
	before := min(margin, a.expires.Sub(a.issued)/2)
	return now.After(a.expires.Add(-before)) || (!a.renewed.IsZero() && now.Sub(a.renewed) > stale)
}

func (a auth) withoutRefresh() []byte {
	var whole, inner map[string]json.RawMessage
	dec := json.NewDecoder(bytes.NewReader(a.whole))
	if dec.Decode(&whole) != nil || json.Unmarshal(whole["tokens"], &inner) != nil {
		panic("BUG: an auth.json that was read before")
	}
	inner["refresh_token"] = json.RawMessage(`""`)
	var err error
	if whole["tokens"], err = json.Marshal(inner); err != nil {
		panic("BUG: " + err.Error())
	}
	data, err := json.Marshal(whole)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return data
}
