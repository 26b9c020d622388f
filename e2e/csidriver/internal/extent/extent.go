// Package extent compares files that share their storage by reflinks.
//
// A file is a list of extents: ranges of its bytes, each with the place on the
// filesystem that holds it. Two files that have the same place for the same
// bytes have the same content there, because a shared place is copied before it
// is written. So only where the places differ is the content compared:
//
//	candidates = ranges whose places differ       (Differing)
//	changed    = blocks of candidates that differ (Changed)
//
// Changed is exact at block granularity: a block is reported if and only if one
// of its bytes differs, or it reaches beyond the end of the base. Allocated
// reports each block that has at least one written byte; a block of zeros that
// was written is allocated.
//
// The files must not change meanwhile.
package extent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
)

// window is how much of a file is mapped and compared at a time: it bounds the
// memory and the time until the first answer.
const window = 64 << 20

// pieceSize is how much is read at a time to be compared, unless a block is larger.
const pieceSize = 1 << 20

// Range is the bytes [Start, End).
type Range struct {
	Start, End int64
}

// Extent is a range of a file and where it lies.
type Extent struct {
	Range
	// Physical is the place of the first byte, in bytes.
	Physical int64
	// Unwritten extents are allocated and read as zeros.
	Unwritten bool
	// Unstable extents have a place that says nothing of their content.
	Unstable bool
}

// Differing returns the ranges of [from, to) where the two maps do not show the
// same content in the same place, ascending and merged.
func Differing(a, b []Extent, from, to int64) []Range {
	var ranges []Range
	for from < to {
		var endA, endB int64
		var pieceA, pieceB *Extent
		a, pieceA, endA = pieceAt(a, from, to)
		b, pieceB, endB = pieceAt(b, from, to)
		end := min(endA, endB)
		if !samePlace(pieceA, pieceB, from) {
			ranges = appendMerged(ranges, Range{Start: from, End: end})
		}
		from = end
	}
	return ranges
}

// pieceAt drops the extents that end before offset and returns the one that
// covers it, nil in a hole, and where that extent or hole ends, at most limit.
func pieceAt(extents []Extent, offset, limit int64) (rest []Extent, piece *Extent, end int64) {
	for len(extents) > 0 && extents[0].End <= offset {
		extents = extents[1:]
	}
	if len(extents) == 0 {
		return extents, nil, limit
	}
	if extents[0].Start > offset {
		return extents, nil, min(extents[0].Start, limit)
	}
	return extents, &extents[0], min(extents[0].End, limit)
}

// samePlace tells whether both pieces certainly have the same byte at offset.
func samePlace(a, b *Extent, offset int64) bool {
	zeroA, zeroB := a == nil || a.Unwritten, b == nil || b.Unwritten
	if zeroA || zeroB {
		return zeroA && zeroB
	}
	if a.Unstable || b.Unstable {
		return false
	}
	return a.Physical+offset-a.Start == b.Physical+offset-b.Start
}

// appendMerged appends a range, joined to the last one when they touch.
func appendMerged(ranges []Range, next Range) []Range {
	if n := len(ranges); n > 0 && ranges[n-1].End >= next.Start {
		ranges[n-1].End = max(ranges[n-1].End, next.End)
		return ranges
	}
	return append(ranges, next)
}

// File is an open file with its size.
type File struct {
	*os.File
	Size int64
}

// Open opens a file for comparison.
func Open(path string) (File, error) {
	file, err := os.Open(path)
	if err != nil {
		return File{}, fmt.Errorf("open file to compare: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		return File{}, errors.Join(fmt.Errorf("stat file to compare: %w", err), file.Close())
	}
	return File{File: file, Size: info.Size()}, nil
}

// Allocated yields the blocks of file that have a written byte, one by one,
// ascending, beginning with the block that holds offset from. The last block
// ends with the file.
func Allocated(file File, from, blockSize int64) iter.Seq2[Range, error] {
	return blocks(file.Size, from, blockSize, func(part Range) ([]Range, error) {
		extents, err := Map(file.File, part.Start, part.End)
		if err != nil {
			return nil, err
		}
		var ranges []Range
		for _, e := range extents {
			if !e.Unwritten {
				ranges = appendMerged(ranges, e.Range)
			}
		}
		return ranges, nil
	})
}

// Changed yields the blocks of target that differ from base, one by one,
// ascending, beginning with the block that holds offset from. What lies beyond
// the end of base has changed. The last block ends with target.
func Changed(base, target File, from, blockSize int64) iter.Seq2[Range, error] {
	c := &comparison{base: base, target: target, blockSize: blockSize}
	return blocks(target.Size, from, blockSize, c.changedIn)
}

// comparison looks for the blocks that differ between two files.
type comparison struct {
	base, target       File
	blockSize          int64
	baseData, thisData []byte // what was read last
}

// changedIn returns the changed blocks of one window.
func (c *comparison) changedIn(part Range) ([]Range, error) {
	common := min(part.End, c.base.Size)
	baseMap, err := Map(c.base.File, part.Start, common)
	if err != nil {
		return nil, err
	}
	targetMap, err := Map(c.target.File, part.Start, part.End)
	if err != nil {
		return nil, err
	}
	var changed []Range
	done := part.Start // blocks before it have been compared
	for _, candidate := range Differing(baseMap, targetMap, part.Start, common) {
		start := max(candidate.Start/c.blockSize*c.blockSize, done)
		end := min((candidate.End+c.blockSize-1)/c.blockSize*c.blockSize, common)
		step := max(pieceSize/c.blockSize, 1) * c.blockSize
		for ; start < end; start += step {
			changed, err = c.appendChanged(changed, Range{Start: start, End: min(start+step, end)})
			if err != nil {
				return nil, err
			}
		}
		done = max(done, end)
	}
	if grown := max(part.Start, c.base.Size); grown < part.End {
		changed = appendMerged(changed, Range{Start: grown, End: part.End})
	}
	return changed, nil
}

// appendChanged appends the blocks of a piece that differ.
func (c *comparison) appendChanged(changed []Range, piece Range) ([]Range, error) {
	var err error
	if c.baseData, err = readPiece(c.base, c.baseData, piece); err != nil {
		return nil, err
	}
	if c.thisData, err = readPiece(c.target, c.thisData, piece); err != nil {
		return nil, err
	}
	for start := int64(0); start < piece.End-piece.Start; start += c.blockSize {
		end := min(start+c.blockSize, piece.End-piece.Start)
		if !bytes.Equal(c.baseData[start:end], c.thisData[start:end]) {
			changed = appendMerged(changed, Range{Start: piece.Start + start, End: piece.Start + end})
		}
	}
	return changed, nil
}

// readPiece reads a piece of a file into the buffer, or into a larger one.
func readPiece(file File, buffer []byte, piece Range) ([]byte, error) {
	length := piece.End - piece.Start
	buffer = slices.Grow(buffer[:0], int(length))[:length]
	n, err := file.ReadAt(buffer, piece.Start)
	if err != nil && (!errors.Is(err, io.EOF) || n < len(buffer)) {
		return nil, fmt.Errorf("read %d bytes of %s at %d: %w", length, file.Name(), piece.Start, err)
	}
	return buffer, nil
}

// blocks calls find for one window of [0, size) after the other and yields the
// blocks that touch the ranges it returns, each block once.
func blocks(size, from, blockSize int64, find func(Range) ([]Range, error)) iter.Seq2[Range, error] {
	step := max(window/blockSize, 1) * blockSize
	return func(yield func(Range, error) bool) {
		next := from / blockSize * blockSize // no block before this one is left to yield
		for start := next; start < size; start += step {
			ranges, err := find(Range{Start: start, End: min(start+step, size)})
			if err != nil {
				yield(Range{}, err)
				return
			}
			for _, found := range ranges {
				for block := range aligned(found, blockSize, size) {
					if block.Start < next {
						continue
					}
					if !yield(block, nil) {
						return
					}
					next = block.End
				}
			}
		}
	}
}

// aligned yields the blocks that touch a range; the last one ends with the file.
func aligned(r Range, blockSize, size int64) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		for start := r.Start / blockSize * blockSize; start < r.End; start += blockSize {
			if !yield(Range{Start: start, End: min(start+blockSize, size)}) {
				return
			}
		}
	}
}
