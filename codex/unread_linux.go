package codex

import (
	"syscall"
	"unsafe"
)

// unread is how much of its input the child has not read yet, in bytes; 0 once the input
// is closed.
func (p *process) unread() int {
	conn, err := p.stdin.SyscallConn()
	if err != nil {
		return 0
	}
	var n int32
	_ = conn.Control(func(fd uintptr) { // on an error n remains 0
		syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCINQ, uintptr(unsafe.Pointer(&n)))
	})
	return int(n)
}
