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
	// regionsTogether are fetched together. Of an image with many ancestors, each of them has some contents of
	// every place, side by side in a pack: the more of them at once, the fewer requests.
	regionsTogether = 4
	// regionsAhead is how far ahead they are fetched. The link has nothing to do once they are here, and what waits here takes memory.
	regionsAhead = 5
)

// regions fetches stretches of whole regions of an image ahead, for who reads all of it in ascending order, as a
// restore does. While one stretch is used, the next ones are on their way. Who reads here and there gets none.
type regions struct {
	size int64

	mu sync.Mutex
	// recent are the highest regions that were read from, in ascending order. read is how many bytes of each
	// were asked for.
	recent []int64
	read   map[int64]int64
	// known are the stretches that are here, or on their way. The first of them begins with region 0.
	known    map[int64]*stretch
	fetching sync.WaitGroup
}

// stretch are the regions from first on that are fetched together, if they are not behind.
type stretch struct {
	first int64
	done  chan struct{}
	// found has its contents once done is closed. It is nil if they could not be fetched.
	found   *fetched
	release func()
	// users are those who use found now. Nobody begins to after it was dropped.
	users   int
	dropped bool
}

func newRegions() *regions {
	return &regions{size: regionSize, read: map[int64]int64{}, known: map[int64]*stretch{}}
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
	for n := first; n < end; n++ {
		g := s.known[n/regionsTogether]
		if g == nil || n < g.first {
			return nil
		}
		if !slices.Contains(all, g) {
			all = append(all, g)
		}
	}
	for _, g := range all {
		g.users++
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
		whole = r.isMost(behind, s.read[behind])
		delete(s.read, behind)
		s.recent = s.recent[1:]
	}
	for old, g := range s.known {
		if (old+1)*regionsTogether <= s.recent[0] {
			delete(s.known, old)
			g.dropped = true
			s.giveUp(g)
		}
	}
	if !whole {
		return
	}
	for next := n / regionsTogether; next <= (n+regionsAhead)/regionsTogether; next++ {
		first := max(n, next*regionsTogether)
		if s.known[next] != nil || first*s.size >= r.meta.Size {
			continue
		}
		g := &stretch{first: first, done: make(chan struct{}), users: 1}
		s.known[next] = g
		s.fetching.Go(func() {
			g.found, g.release = r.fetchRegions(first, (next+1)*regionsTogether)
			close(g.done)
			s.leave([]*stretch{g})
		})
	}
}

// giveUp releases a stretch that nobody uses any more. s.mu is held.
func (s *regions) giveUp(g *stretch) {
	if g.dropped && g.users == 0 && g.release != nil {
		g.release()
		g.release = nil
	}
}

func (s *regions) leave(all []*stretch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range all {
		g.users--
		s.giveUp(g)
	}
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

// fetchRegions returns nil if there is nothing to fetch, or too much, or if that fails: the reads of it have the
// better error.
func (r *reader) fetchRegions(first, end int64) (*fetched, func()) {
	ids, _, err := r.regionContents(first, end)
	if err != nil {
		return nil, nil
	}
	r.ranges.learn(r.ctx)
	// What does not compress takes a little more, and there are gaps.
	found, release, err := r.ranges.get(r.ctx, ids, (end-first)*r.regions.size/2*3)
	if err != nil {
		return nil, nil
	}
	return found, release
}
