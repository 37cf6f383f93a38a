package pool

// The two ways to read the memory of a process: a test has no swap, where the second
// is used.
var (
	PrivateOfStatm  = privateOfStatm
	PrivateOfStatus = privateOfStatus
)
