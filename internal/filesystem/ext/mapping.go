package ext

import (
	"fmt"
	"iter"
	"slices"
)

type runState uint8

const (
	hole runState = iota
	data
	// unwritten blocks belong to the file and read as zeros.
	unwritten
)

// endOfMapping is more than the number of any block of a file.
const endOfMapping = 1 << 62

// run is a range of blocks of a file, and where they are. All numbers are blocks.
type run struct {
	logical, length uint64
	physical        uint64
	state           runState
}

func (r run) end() uint64 { return r.logical + r.length }

// continues reports whether a run goes on with another.
func (r run) continues(next run) bool {
	return r.end() == next.logical && r.state == next.state && (r.state == hole || r.physical+r.length == next.physical)
}

// clip returns the part of a run in [from, to).
func (r run) clip(from, to uint64) run {
	start := max(r.logical, from)
	if r.state != hole {
		r.physical += start - r.logical
	}
	r.length = min(r.end(), to) - start
	r.logical = start
	return r
}

// lookup returns the run that begins with a block of a file. It may end before a block that is like it.
func (f *FileSystem) lookup(in *inode, logical uint64) (run, error) {
	i, found := slices.BinarySearchFunc(in.patches, logical, func(p run, at uint64) int {
		switch {
		case p.end() <= at:
			return -1
		case p.logical > at:
			return 1
		}
		return 0
	})
	if found {
		return in.patches[i].clip(logical, endOfMapping), nil
	}
	var (
		r   run
		err error
	)
	if in.is(flagExtents) {
		r, err = f.lookupExtent(in, logical)
	} else {
		r, err = f.lookupIndirect(in, logical)
	}
	if err != nil {
		return run{}, fmt.Errorf("find block %d of inode %d: %w", logical, in.number, err)
	}
	if i < len(in.patches) {
		r = r.clip(logical, in.patches[i].logical)
	}
	return r, nil
}

// runs yields the mapped runs of a file before a block. It ends, whatever the device has: no file has more blocks than the
// file system.
func (f *FileSystem) runs(in *inode, end uint64) iter.Seq2[run, error] {
	return func(yield func(run, error) bool) {
		mapped, lookups := uint64(0), uint64(0)
		for at := uint64(0); at < end; {
			r, err := f.lookup(in, at)
			if err == nil && r.state != hole {
				mapped += r.length
			}
			if lookups++; err == nil && (mapped > f.super.blocks || lookups > f.super.blocks+1024) {
				err = damaged("inode %d has more blocks than the file system", in.number)
			}
			if err != nil {
				yield(run{}, err)
				return
			}
			r = r.clip(at, end)
			if r.state != hole && !yield(r, nil) {
				return
			}
			at = r.end()
		}
	}
}

// checkBlocks checks that blocks are where files may have theirs.
func (f *FileSystem) checkBlocks(first, length uint64) error {
	if first <= f.super.firstDataBlock || first >= f.super.blocks || length > f.super.blocks-first {
		return damaged("the %d blocks at %d are none of a file system of %d blocks", length, first, f.super.blocks)
	}
	return nil
}
