//go:build !linux

package codex

// unread is 0: how much of its input a child has not read yet is known on Linux only.
func (p *process) unread() int { return 0 }
