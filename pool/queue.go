package pool

import (
	"container/list"
	"iter"
	"slices"

	"github.com/jackc/puddle/v2"
)

// queue holds the callers that wait for a child: first come, first served within a
// tenant, and round robin between tenants, so that a tenant with many requests
// does not delay one with few. Its owner guards it with a lock.
type queue struct {
	tenants map[string]*list.List // of *waiter; a tenant without waiters is not in it
	turns   []string              // the same tenants; the first is served next
	length  int
}

// waiter is one caller in the queue.
type waiter struct {
	tenant    string
	admission *Admission
	done      chan struct{}            // closed once child or err is set
	child     *puddle.Resource[*child] // what the caller got
	err       error                    // or why waiting has become pointless
	place     *list.Element            // nil outside the queue
}

// push adds w behind its tenant's other waiters.
func (q *queue) push(w *waiter) {
	if q.tenants == nil {
		q.tenants = map[string]*list.List{}
	}
	waiters := q.tenants[w.tenant]
	if waiters == nil {
		waiters = list.New()
		q.tenants[w.tenant] = waiters
		q.turns = append(q.turns, w.tenant)
	}
	w.place = waiters.PushBack(w)
	q.length++
}

// pop removes and returns the waiter that is served next, nil where there is
// none. Its tenant's next turn comes after those of all the others.
func (q *queue) pop() *waiter {
	if q.length == 0 {
		return nil
	}
	tenant := q.turns[0]
	w := q.tenants[tenant].Front().Value.(*waiter)
	q.turns = append(q.turns[1:], tenant)
	q.remove(w)
	return w
}

// longest is the tenant with most waiters; of several, the one that is served next.
func (q *queue) longest() (tenant string) {
	most := 0
	for _, t := range q.turns {
		if n := q.tenants[t].Len(); n > most {
			tenant, most = t, n
		}
	}
	return tenant
}

// newest iterates over the admissions of a tenant that wait, and to which no child was
// lent, newest first.
func (q *queue) newest(tenant string) iter.Seq[*Admission] {
	return func(yield func(*Admission) bool) {
		seen := map[*Admission]bool{} // it may wait for several children
		waiters := q.tenants[tenant]
		if waiters == nil {
			return
		}
		for e := waiters.Back(); e != nil; e = e.Prev() {
			a := e.Value.(*waiter).admission
			if seen[a] || a.begun {
				continue
			}
			if seen[a] = true; !yield(a) {
				return
			}
		}
	}
}

// all lists the waiters.
func (q *queue) all() (list []*waiter) {
	for _, waiters := range q.tenants {
		for e := waiters.Front(); e != nil; e = e.Next() {
			list = append(list, e.Value.(*waiter))
		}
	}
	return list
}

// remove removes w. It returns false if w is not in the queue.
func (q *queue) remove(w *waiter) bool {
	if w.place == nil {
		return false
	}
	waiters := q.tenants[w.tenant]
	waiters.Remove(w.place)
	w.place = nil
	q.length--
	if waiters.Len() == 0 {
		delete(q.tenants, w.tenant)
		q.turns = slices.DeleteFunc(q.turns, func(tenant string) bool { return tenant == w.tenant })
	}
	return true
}
