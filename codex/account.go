package codex

import "context"

type accountReadParams struct {
	RefreshToken bool `json:"refreshToken"`
}

type accountReadResult struct {
	Account *struct{} `json:"account"` // null where there is no login that works
}

// LoggedIn reports whether the child has a login that works. A child refreshes
// by itself a token that expires within five minutes, also in the handshake.
func (c *Client) LoggedIn(ctx context.Context) (bool, error) {
	return c.readAccount(ctx, accountReadParams{})
}

// RefreshLogin has the child refresh its login, however long that is still good
// for, and reports whether it has a login that works. The child writes the new one
// to the auth.json in its CODEX_HOME.
func (c *Client) RefreshLogin(ctx context.Context) (bool, error) {
	return c.readAccount(ctx, accountReadParams{RefreshToken: true})
}

func (c *Client) readAccount(ctx context.Context, p accountReadParams) (bool, error) {
	defer c.enter()()
	var answer accountReadResult
	err := c.call(ctx, "account/read", p, &answer)
	return err == nil && answer.Account != nil, err
}
