// Package arena lends parts of memory that it keeps.
//
// A data path needs buffers of many sizes, each for a moment. If each were made anew, the runtime would clear some bytes for each byte
// that is moved, and the garbage collector would run dozens of times in a second. Lists of free buffers of one size do not help where the
// sizes vary. An arena makes large pieces of memory once, and lends parts of them.
package arena

import (
	"cmp"
	"slices"
	"sync"

	"github.com/blockmover/blockmover/internal/device"
)

// Arena is safe for concurrent use.
type Arena struct {
	slab, limit int

	mu    sync.Mutex
	slabs []*slab
	// made is how many bytes all slabs have.
	made int
}

// slab is a piece of memory.
type slab struct {
	arena *Arena
	mem   []byte
	// free has what is not lent, in ascending order. No two of them adjoin.
	free []span
}

type span struct{ from, to int }

// Part is memory that was lent. Its owner frees it once.
type Part struct {
	// Bytes begin at an address that suits direct access to a device. They hold whatever was there before.
	Bytes []byte

	span

	slab *slab
}

// New returns an arena that makes memory in pieces of so many bytes, as it is needed, up to a limit.
func New(slab, limit int) *Arena { return &Arena{slab: slab, limit: limit} }

// Get lends n bytes. If the arena has no room for them in one piece, they are made anew, and are garbage once they are free.
func (a *Arena) Get(n int) Part {
	need := (n + device.Alignment - 1) / device.Alignment * device.Alignment
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.slabs {
		if p, ok := s.take(n, need); ok {
			return p
		}
	}
	size := max(a.slab, need)
	if a.made+size > a.limit {
		return Part{Bytes: device.NewBuffer(n)}
	}
	s := &slab{arena: a, mem: device.NewBuffer(size), free: []span{{0, size}}}
	a.slabs = append(a.slabs, s)
	a.made += size
	p, _ := s.take(n, need)
	return p
}

// take lends n bytes of the first free span that has room for as many as need says.
func (s *slab) take(n, need int) (Part, bool) {
	for i, f := range s.free {
		if f.to-f.from < need {
			continue
		}
		if f.to-f.from == need {
			s.free = slices.Delete(s.free, i, i+1)
		} else {
			s.free[i].from += need
		}
		return Part{Bytes: s.mem[f.from : f.from+n : f.from+need], span: span{f.from, f.from + need}, slab: s}, true
	}
	return Part{}, false
}

// Free gives the memory back. Nobody may use it any more. The zero value has none.
func (p Part) Free() {
	if p.slab == nil {
		return
	}
	p.slab.arena.mu.Lock()
	defer p.slab.arena.mu.Unlock()
	p.slab.put(p.span)
}

// put joins what is free with its neighbours.
func (s *slab) put(f span) {
	i, _ := slices.BinarySearchFunc(s.free, f.from, func(f span, from int) int { return cmp.Compare(f.from, from) })
	if i < len(s.free) && s.free[i].from < f.to || i > 0 && s.free[i-1].to > f.from {
		panic("arena: a part was freed twice")
	}
	after := i < len(s.free) && s.free[i].from == f.to
	before := i > 0 && s.free[i-1].to == f.from
	switch {
	case before && after:
		s.free[i-1].to = s.free[i].to
		s.free = slices.Delete(s.free, i, i+1)
	case before:
		s.free[i-1].to = f.to
	case after:
		s.free[i].from = f.from
	default:
		s.free = slices.Insert(s.free, i, f)
	}
}
