package datapath

import (
	"hash/maphash"
	"sync/atomic"

	"github.com/blockmover/blockmover/internal/block"
)

// regionSize is the range that shares one checksum: 8 bytes for 64 MiB, 8 MiB for 64 TiB.
const regionSize = 64 << 20

// checksums says what a device should hold, in little memory. Data may be added in any order:
// each cell (a range of the size of a chunk) is hashed together with its offset, and the
// hashes of a region are combined by exclusive or.
//
// A nil *checksums accepts everything and remembers nothing.
type checksums struct {
	seed    maphash.Seed
	size    int64
	cell    int64
	regions []atomic.Uint64
}

func newChecksums(size, cell int64) *checksums {
	return &checksums{
		seed:    maphash.MakeSeed(),
		size:    size,
		cell:    cell,
		regions: make([]atomic.Uint64, (size+regionSize-1)/regionSize),
	}
}

// add adds data at an offset, which is the start of a cell. If data ends inside a cell, the
// rest of that cell is zeros. buf is memory that starts with data and has room for the zeros.
func (c *checksums) add(offset int64, data, buf []byte) {
	if c == nil {
		return
	}
	end := min((offset+int64(len(data))+c.cell-1)/c.cell*c.cell, c.size)
	whole := buf[:end-offset]
	clear(whole[len(data):])
	for len(whole) > 0 {
		n := min(int64(len(whole)), c.cell)
		c.note(offset, maphash.Bytes(c.seed, whole[:n]))
		whole = whole[n:]
		offset += n
	}
}

// addZeros adds a range of zeros. If the range starts inside a cell, add has added that cell.
func (c *checksums) addZeros(e block.Extent) {
	if c == nil {
		return
	}
	zeros := make([]byte, c.cell)
	full := maphash.Bytes(c.seed, zeros)
	for off := (e.Offset + c.cell - 1) / c.cell * c.cell; off < e.End(); off += c.cell {
		if n := c.size - off; n < c.cell {
			c.note(off, maphash.Bytes(c.seed, zeros[:n]))
			continue
		}
		c.note(off, full)
	}
}

// note adds the hash of the cell at an offset.
func (c *checksums) note(offset int64, hash uint64) {
	// The finaliser of splitmix64. It makes swapped cells change the checksum.
	h := hash + uint64(offset/c.cell)*0x9e3779b97f4a7c15 //nolint:gosec // an offset is not negative
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	region := &c.regions[offset/regionSize]
	for {
		old := region.Load()
		if region.CompareAndSwap(old, old^h^h>>31) {
			return
		}
	}
}

// difference returns the first region in which two sets of checksums differ.
func (c *checksums) difference(other *checksums) (block.Extent, bool) {
	for i := range c.regions {
		if c.regions[i].Load() != other.regions[i].Load() {
			off := int64(i) * regionSize
			return block.Extent{Offset: off, Length: min(regionSize, c.size-off)}, true
		}
	}
	return block.Extent{}, false
}
