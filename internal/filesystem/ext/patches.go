package ext

import (
	"cmp"
	"container/heap"
	"iter"
	"maps"
	"slices"
)

// entries yields the entries of a directory with the changes of fast commits: those of the device in their order, then
// new names by name.
func (c *fastCommits) entries(in *inode, base iter.Seq2[entry, error]) iter.Seq2[entry, error] {
	directory := c.directories[in.number]
	if directory == nil {
		return base
	}
	return func(yield func(entry, error) bool) {
		var first error
		seen := map[string]bool{}
		if !directory.created {
			for e, err := range base {
				if err != nil {
					first = err
					break
				}
				if number, found := directory.names[e.name]; found {
					seen[e.name] = true
					e.inode = number
				}
				if e.inode != 0 && !yield(e, nil) {
					return
				}
			}
		}
		for _, name := range slices.Sorted(maps.Keys(directory.names)) {
			number := directory.names[name]
			if number != 0 && !seen[name] && !yield(entry{name: name, inode: number}, nil) {
				return
			}
		}
		if first != nil {
			yield(entry{}, first)
		}
	}
}

// flatten returns the ranges that changes come to, ascending and without overlap. The last change of a block counts.
func flatten(changes []run) []run {
	sorted := make([]change, len(changes))
	bounds := make([]uint64, 0, 2*len(changes))
	for i, r := range changes {
		sorted[i] = change{r, i}
		bounds = append(bounds, r.logical, r.end())
	}
	slices.SortFunc(sorted, func(a, b change) int { return cmp.Compare(a.logical, b.logical) })
	slices.Sort(bounds)
	bounds = slices.Compact(bounds)

	var flat []run
	active := &latest{}
	for i := 0; i+1 < len(bounds); i++ {
		for len(sorted) > 0 && sorted[0].logical <= bounds[i] {
			heap.Push(active, sorted[0])
			sorted = sorted[1:]
		}
		for active.Len() > 0 && (*active)[0].end() <= bounds[i] {
			heap.Pop(active)
		}
		if active.Len() == 0 {
			continue
		}
		r := (*active)[0].clip(bounds[i], bounds[i+1])
		if n := len(flat); n > 0 && flat[n-1].continues(r) {
			flat[n-1].length += r.length
		} else {
			flat = append(flat, r)
		}
	}
	return flat
}

// latest is a heap of changes with the last one at its top.
type latest []change

type change struct {
	run
	at int
}

func (l latest) Len() int           { return len(l) }
func (l latest) Less(i, j int) bool { return l[i].at > l[j].at }
func (l latest) Swap(i, j int)      { l[i], l[j] = l[j], l[i] }

// Push implements heap.Interface.
func (l *latest) Push(x any) { *l = append(*l, x.(change)) } //nolint:errcheck,forcetypeassert // the heap has nothing else

// Pop implements heap.Interface.
func (l *latest) Pop() any {
	last := (*l)[len(*l)-1]
	*l = (*l)[:len(*l)-1]
	return last
}
