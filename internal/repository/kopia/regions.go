package kopia

import (
	"context"
	"slices"
	"sync"

	"github.com/kopia/kopia/repo/content"
)

const (
	// regionSize is how much of a volume a reader looks at to see whether all of it is read.
	regionSize = 8 << 20
	// regionsTogether are a stretch, which is fetched together. Of an image with many ancestors, each of them has some contents of
	// every place, side by side in a pack: the more of them at once, the fewer requests.
	regionsTogether = 4
	// regionsAhead is how far ahead they are fetched for who has not said that everything will be read.
	regionsAhead = 5
	// learnFrom is the stretch from which on it pays to learn all of the index.
	learnFrom = 2
	// stretchesKept are kept behind the one that was reached last, if everything will be read: so many readers may be at as many places.
	stretchesKept = 8
)

// regions fetches stretches of an image ahead, for who reads all of it in ascending order, as a restore does: for who says so, or has read
// so for some regions. While one stretch is used, the next ones are on their way, as far as there is memory. Who reads here and there gets
// none.
type regions struct {
	// size of a region, and how much memory there is for what is ahead.
	size, memory int64

	mu sync.Mutex
	// changed tells that there may be something new to do.
	changed *sync.Cond
	// all is set if everything will be read.
	all bool
	// recent are the highest regions that were read from, in ascending order. read is how many bytes of each
	// were asked for.
	recent []int64
	read   map[int64]int64
	// known are the stretches that are here, or on their way.
	known map[int64]*stretch
	// next is the stretch to be fetched next, from the region from on, and last the last one. They are fetched while running is set.
	next, from, last int64
	running, closed  bool
	// started is closed once all requests of the stretch before the next one are made.
	started  chan struct{}
	fetching sync.WaitGroup
}

// stretch are the regions from first on that are fetched together.
type stretch struct {
	index, first int64
	done         chan struct{}
	// holds is what it has memory for. found is the same once done is closed, or nil if that could not be fetched.
	holds, found *fetched
	// users are those who use found now. Nobody begins to after it was dropped.
	users   int
	dropped bool
}

func newRegions() *regions {
	s := &regions{size: regionSize, memory: rangeMemory, read: map[int64]int64{}, known: map[int64]*stretch{}}
	s.changed = sync.NewCond(&s.mu)
	s.started = make(chan struct{})
	close(s.started)
	return s
}

// close waits for what is on its way, and gives the rest up.
func (s *regions) close() {
	s.mu.Lock()
	s.closed = true
	s.changed.Broadcast()
	s.mu.Unlock()
	s.fetching.Wait()
}

// fetchAll begins to fetch everything.
func (s *regions) fetchAll(r *reader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = true
	s.fetch(r, 0, r.meta.Size/s.size/regionsTogether)
}

// enter notes a read, and returns the stretches that it is in, or none if not all of them are known. The caller
// leaves them.
func (s *regions) enter(r *reader, off, length int64) []*stretch {
	first, end := off/s.size, (off+length-1)/s.size+1
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := first; n < end; n++ {
		if len(s.recent) == 0 || n > s.recent[len(s.recent)-1] {
			s.move(r, n)
		}
		if slices.Contains(s.recent, n) {
			s.read[n] += min(off+length, (n+1)*s.size) - max(off, n*s.size)
		}
	}
	var all []*stretch
	for k := first / regionsTogether; k <= (end-1)/regionsTogether; k++ {
		for s.running && !s.closed && s.next <= k && k <= s.last {
			s.changed.Wait()
		}
		g := s.known[k]
		if g == nil || max(first, k*regionsTogether) < g.first {
			s.drop(all)
			return nil
		}
		g.users++
		all = append(all, g)
	}
	return all
}

// move makes a region the last one. If what is behind was read as a whole, it and what follows are fetched. Those who
// read side by side may not all have come to the region before it yet, but to the one before that.
func (s *regions) move(r *reader, n int64) {
	s.recent = append(s.recent, n)
	whole := false
	if len(s.recent) > 2 {
		behind := s.recent[0]
		whole = !s.all && r.isMost(behind, s.read[behind])
		delete(s.read, behind)
		s.recent = s.recent[1:]
	}
	behind := s.recent[0]
	if s.all {
		behind -= stretchesKept * regionsTogether
	}
	for _, g := range s.known {
		if (g.index+1)*regionsTogether <= behind {
			s.forget(g)
		}
	}
	if whole {
		s.fetch(r, n, (n+regionsAhead)/regionsTogether)
	}
	s.changed.Broadcast()
}

// fetch fetches what is not known from a region on, up to a stretch. s.mu is held.
func (s *regions) fetch(r *reader, from, last int64) {
	s.from, s.last = from, last
	s.next = max(s.next, from/regionsTogether)
	if s.running || s.closed {
		return
	}
	s.running = true
	s.fetching.Go(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for !s.closed && s.next <= s.last && s.next*regionsTogether*s.size < r.meta.Size {
			s.fetchNext(r)
		}
		s.running = false
		s.changed.Broadcast()
	})
}

// fetchNext begins to fetch the next stretch once there is memory, or somebody needs it. s.mu is held.
func (s *regions) fetchNext(r *reader) {
	g := &stretch{index: s.next, first: max(s.from, s.next*regionsTogether), done: make(chan struct{}), users: 1}
	s.known[g.index] = g
	s.next++
	s.changed.Broadcast()
	s.mu.Unlock()
	found := r.planStretch(g.first, (g.index+1)*regionsTogether)
	s.mu.Lock()
	for found != nil && !s.closed && !g.dropped && s.reached() < g.index && s.held()+found.held.Load() > s.memory {
		s.changed.Wait()
	}
	if found == nil || s.closed || g.dropped {
		close(g.done)
		s.drop([]*stretch{g})
		return
	}
	g.holds = found
	before, started := s.started, make(chan struct{})
	s.started = started
	s.fetching.Go(func() {
		<-before // its reader comes first
		wait := r.ranges.start(r.ctx, found)
		close(started)
		// The reads of what cannot be fetched have the better error.
		if err := wait(); err == nil {
			g.found = found
		}
		close(g.done)
		s.leave([]*stretch{g})
	})
}

// reached returns the stretch that was reached last.
func (s *regions) reached() int64 {
	if len(s.recent) == 0 {
		return -1
	}
	return s.recent[len(s.recent)-1] / regionsTogether
}

// held returns how many bytes all stretches hold.
func (s *regions) held() int64 {
	var held int64
	for _, g := range s.known {
		if g.holds != nil {
			held += g.holds.held.Load()
		}
	}
	return held
}

// forget makes a stretch unknown. s.mu is held.
func (s *regions) forget(g *stretch) {
	delete(s.known, g.index)
	g.dropped = true
	s.giveUp(g)
}

// giveUp frees a stretch that nobody uses any more. s.mu is held.
func (s *regions) giveUp(g *stretch) {
	if g.dropped && g.users == 0 && g.holds != nil {
		g.holds.release()
	}
}

// drop is leave while s.mu is held.
func (s *regions) drop(all []*stretch) {
	for _, g := range all {
		g.users--
		if !g.dropped && g.holds != nil && g.holds.held.Load() == 0 {
			s.forget(g)
		}
		s.giveUp(g)
	}
	s.changed.Broadcast()
}

func (s *regions) leave(all []*stretch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(all)
}

// wait returns ctx with what the stretches have. ok is false if one of them has nothing.
func (s *regions) wait(ctx context.Context, all []*stretch) (_ context.Context, ok bool) {
	var found several
	for _, g := range all {
		<-g.done
		if g.found == nil {
			return ctx, false
		}
		found = append(found, g.found)
	}
	return context.WithValue(ctx, fetchedKey{}, found), len(found) > 0
}

// regionContents returns the contents of regions, and how many bytes of the volume they are.
func (r *reader) regionContents(first, end int64) (ids []content.ID, length int64, err error) {
	for off := first * r.regions.size; off < min(end*r.regions.size, r.meta.Size); off += r.layout.ChunkSize() {
		entries, err := r.chunk(r.ctx, r.layout.ChunkAt(off))
		if err != nil {
			return nil, 0, err
		}
		for _, e := range entries {
			if r.zero[e.Object] {
				continue
			}
			length += e.Length
			if id, _, direct := e.Object.ContentID(); direct {
				ids = append(ids, id)
			}
		}
	}
	return ids, length, nil
}

// isMost reports whether so many bytes are most of what a region has.
func (r *reader) isMost(n, read int64) bool {
	_, length, err := r.regionContents(n, n+1)
	return err == nil && read >= length/4*3
}

// planStretch says what is to be fetched for some regions. It returns nil if that is nothing, or too much, or cannot be said.
func (r *reader) planStretch(first, end int64) *fetched {
	segment, _ := r.layout.SegmentAt(r.layout.ChunkAt(first * r.regions.size))
	last, _ := r.layout.SegmentAt(r.layout.ChunkAt(min(end*r.regions.size, r.meta.Size) - 1))
	for ; segment <= last; segment++ {
		r.walk.reach(r.ctx, r, segment)
	}
	ids, _, err := r.regionContents(first, end)
	if err != nil {
		return nil
	}
	if first >= learnFrom*regionsTogether {
		r.ranges.learn(r.ctx)
	}
	// What does not compress takes a little more, and there are gaps.
	return r.ranges.plan(r.ctx, ids, (end-first)*r.regions.size/2*3)
}
