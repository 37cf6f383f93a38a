package pool

// How many children may be admitted, and who makes room for others. All is part of state,
// under its lock.

// admit counts the children of an admission, or returns ErrFull and counts none.
func (s *state) admit(a *Admission) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	victims, err := s.victims(a.tenant, a.holds)
	for _, v := range victims {
		s.turnAway(v)
	}
	if err == nil {
		s.count(a.tenant, a.holds)
	}
	return err
}

// room returns ErrFull where admit would admit nobody of the tenant.
func (s *state) room(tenant string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.victims(tenant, 1)
	return err
}

// victims are the admissions that make room for n more children of a tenant, if there is
// too little: the newest of the tenant that has most in the queue. It returns ErrFull where
// they would be too many: that tenant keeps at least as many children as this one will
// have, those that are lent included. Else two that flood the pool would dismiss each
// other's requests in turn. The caller holds mu.
func (s *state) victims(tenant string, n int) (list []*Admission, err error) {
	over := s.admitted + n - s.cfg.Size - s.cfg.MaxWaiting
	if over <= 0 {
		return nil, nil
	}
	freed, most := 0, s.queue.longest()
	for a := range s.queue.newest(most) {
		if freed >= over {
			break
		}
		list = append(list, a)
		freed += a.holds
	}
	if freed < over || s.held[tenant]+n > s.held[most]-freed {
		return nil, ErrFull
	}
	return list, nil
}

// turnAway dismisses an admission to which no child was lent. The caller holds mu.
func (s *state) turnAway(a *Admission) {
	s.release(a, a.holds)
	a.away = ErrFull
	for _, w := range s.queue.all() {
		if w.admission == a {
			s.dismiss(w, ErrFull)
		}
	}
}

// count counts n more children for a tenant. The caller holds mu.
func (s *state) count(tenant string, n int) {
	if s.held == nil {
		s.held = map[string]int{}
	}
	s.admitted += n
	if s.held[tenant] += n; s.held[tenant] == 0 {
		delete(s.held, tenant)
	}
}

// release ends what admit began, for n children, unless the admission was turned away:
// that has ended it for all. The caller holds mu.
func (s *state) release(a *Admission, n int) {
	n = min(n, a.holds)
	a.holds -= n
	s.count(a.tenant, -n)
}

// releaseOne is release for one child, and for a caller that does not hold mu.
func (s *state) releaseOne(a *Admission) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release(a, 1)
}
