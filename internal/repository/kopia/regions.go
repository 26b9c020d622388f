package kopia

import (
	"context"
	"slices"
	"sync"

	"github.com/kopia/kopia/repo/content"
)

// regionSize is how much of a volume is fetched ahead at once. Of an image with many ancestors, each of them has
// some contents of every region, side by side in a pack: the larger a region, the fewer requests.
const regionSize = 8 << 20

// regionsAhead is how many regions are on their way while one is used.
const regionsAhead = 2

// regions fetches whole regions of an image ahead, for who reads all of it in ascending order, as a restore
// does. While one region is used, the next ones are on their way. Who reads here and there gets no regions.
type regions struct {
	size int64

	mu sync.Mutex
	// recent are the highest regions that were read from, in ascending order. read is how many bytes of each
	// were asked for.
	recent []int64
	read   map[int64]int64
	// known are those that are here, or on their way.
	known    map[int64]*region
	fetching sync.WaitGroup
}

// region is a part of a volume.
type region struct {
	done chan struct{}
	// found has its contents once done is closed. It is nil if they could not be fetched.
	found   *fetched
	release func()
	// users are those who use found now. Nobody begins to after it was dropped.
	users   int
	dropped bool
}

func newRegions() *regions {
	return &regions{size: regionSize, read: map[int64]int64{}, known: map[int64]*region{}}
}

// enter notes a read, and returns the regions that it is in, or none if not all of them are known. The caller
// leaves them.
func (s *regions) enter(r *reader, off, length int64) []*region {
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
	var all []*region
	for n := first; n < end; n++ {
		g := s.known[n]
		if g == nil {
			return nil
		}
		all = append(all, g)
	}
	for _, g := range all {
		g.users++
	}
	return all
}

// move makes a region the last one. If what is behind was read as a whole, it and the next ones are fetched. Those who
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
		if old < s.recent[0] {
			delete(s.known, old)
			g.dropped = true
			s.giveUp(g)
		}
	}
	if !whole {
		return
	}
	for next := n; next <= n+regionsAhead; next++ {
		if s.known[next] != nil || next*s.size >= r.meta.Size {
			continue
		}
		g := &region{done: make(chan struct{}), users: 1}
		s.known[next] = g
		s.fetching.Go(func() {
			g.found, g.release = r.fetchRegion(next)
			close(g.done)
			s.leave([]*region{g})
		})
	}
}

// giveUp releases a region that nobody uses any more. s.mu is held.
func (s *regions) giveUp(g *region) {
	if g.dropped && g.users == 0 && g.release != nil {
		g.release()
		g.release = nil
	}
}

func (s *regions) leave(all []*region) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range all {
		g.users--
		s.giveUp(g)
	}
}

// wait returns ctx with what the regions have. ok is false if one of them has nothing.
func (s *regions) wait(ctx context.Context, all []*region) (_ context.Context, ok bool) {
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

// regionContents returns the contents of a region, and how many bytes of it they are.
func (r *reader) regionContents(n int64) (ids []content.ID, length int64, err error) {
	end := min((n+1)*r.regions.size, r.meta.Size)
	for off := n * r.regions.size; off < end; off += r.layout.ChunkSize() {
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
	_, length, err := r.regionContents(n)
	return err == nil && read >= length/4*3
}

// fetchRegion returns nil if there is nothing to fetch, or too much, or if that fails: the reads of it have the
// better error.
func (r *reader) fetchRegion(n int64) (*fetched, func()) {
	ids, _, err := r.regionContents(n)
	if err != nil {
		return nil, nil
	}
	// What does not compress takes a little more, and there are gaps.
	found, release, err := r.ranges.get(r.ctx, ids, r.regions.size/2*3)
	if err != nil {
		return nil, nil
	}
	return found, release
}
