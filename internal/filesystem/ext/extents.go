package ext

import "sort"

const (
	extentMagic      = 0xf30a
	extentHeaderSize = 12
	extentEntrySize  = 12
	// maxExtentDepth is what 2^32 blocks of 1 KiB need at most (EXT4_MAX_EXTENT_DEPTH).
	maxExtentDepth = 5
	// maxExtentLength is the longest written extent. A greater length marks an unwritten one of the difference.
	maxExtentLength = 1 << 15
	// extentLimit is the number of blocks that extents can address.
	extentLimit = 1 << 32
)

// extentNode is one node of a tree of extents, checked.
type extentNode struct {
	entries []byte
	depth   int
	// low and limit are the blocks that the node may map.
	low, limit uint64
}

func (n extentNode) len() int { return len(n.entries) / extentEntrySize }

func (n extentNode) entry(i int) []byte {
	return n.entries[i*extentEntrySize : (i+1)*extentEntrySize]
}

// key is the first block of an entry.
func (n extentNode) key(i int) uint64 { return uint64(le.Uint32(n.entry(i))) }

// next is the first block after an entry that may be another entry's.
func (n extentNode) next(i int) uint64 {
	if i+1 < n.len() {
		return n.key(i + 1)
	}
	return n.limit
}

// child returns the block of an index entry.
func (n extentNode) child(i int) uint64 {
	e := n.entry(i)
	return uint64(le.Uint32(e[4:])) | uint64(le.Uint16(e[8:]))<<32
}

// extent returns an entry of a leaf.
func (n extentNode) extent(i int) run {
	e := n.entry(i)
	r := run{logical: n.key(i), length: uint64(le.Uint16(e[4:])), state: data}
	if r.length > maxExtentLength {
		r.length, r.state = r.length-maxExtentLength, unwritten
	}
	r.physical = uint64(le.Uint32(e[8:])) | uint64(le.Uint16(e[6:]))<<32
	return r
}

// find returns the last entry that begins at or before a block, or -1.
func (n extentNode) find(logical uint64) int {
	return sort.Search(n.len(), func(i int) bool { return n.key(i) > logical }) - 1
}

func (f *FileSystem) lookupExtent(in *inode, logical uint64) (run, error) {
	if logical >= extentLimit {
		return run{logical: logical, length: endOfMapping - logical}, nil
	}
	depth := int(le.Uint16(in.blockArea()[6:]))
	if depth > maxExtentDepth {
		return run{}, damaged("the tree of extents is %d deep", depth)
	}
	node, err := f.parseExtents(in.blockArea(), depth, 0, extentLimit)
	if err != nil {
		return run{}, err
	}
	for node.depth > 0 {
		i := node.find(logical)
		if i < 0 {
			return run{logical: logical, length: node.key(0) - logical}, nil
		}
		block, err := f.dev.block(node.child(i))
		if err != nil {
			return run{}, err
		}
		if err := f.checkExtentBlock(in, block); err != nil {
			return run{}, err
		}
		if node, err = f.parseExtents(block, node.depth-1, node.key(i), node.next(i)); err != nil {
			return run{}, err
		}
	}
	i := node.find(logical)
	if i >= 0 {
		if r := node.extent(i); logical < r.end() {
			return r.clip(logical, endOfMapping), nil
		}
	}
	return run{logical: logical, length: node.next(i) - logical}, nil
}

// parseExtents checks a node: what it maps is ascending and inside [low, limit).
func (f *FileSystem) parseExtents(raw []byte, depth int, low, limit uint64) (extentNode, error) {
	entries, most := int(le.Uint16(raw[2:])), int(le.Uint16(raw[4:]))
	switch {
	case le.Uint16(raw) != extentMagic:
		return extentNode{}, damaged("a node of extents has no magic number")
	case int(le.Uint16(raw[6:])) != depth:
		return extentNode{}, damaged("a node of extents has depth %d, want %d", le.Uint16(raw[6:]), depth)
	case entries > most || extentHeaderSize+most*extentEntrySize > len(raw):
		return extentNode{}, damaged("a node of extents has %d of %d entries in %d bytes", entries, most, len(raw))
	case entries == 0 && depth > 0:
		return extentNode{}, damaged("an index of extents is empty")
	}
	n := extentNode{
		entries: raw[extentHeaderSize : extentHeaderSize+entries*extentEntrySize],
		depth:   depth, low: low, limit: limit,
	}
	at := low
	for i := range entries {
		key, end := n.key(i), n.key(i)+1
		if depth == 0 {
			r := n.extent(i)
			if r.length == 0 {
				return extentNode{}, damaged("an extent is empty")
			}
			if err := f.checkBlocks(r.physical, r.length); err != nil {
				return extentNode{}, err
			}
			end = r.end()
		} else if err := f.checkBlocks(n.child(i), 1); err != nil {
			return extentNode{}, err
		}
		if key < at || end > limit {
			return extentNode{}, damaged("the entry of blocks [%d,%d) is not inside [%d,%d)", key, end, at, limit)
		}
		at = end
	}
	return n, nil
}

// checkExtentBlock checks the checksum behind the entries of a node in a block of its own.
func (f *FileSystem) checkExtentBlock(in *inode, block []byte) error {
	if !f.super.checksums() {
		return nil
	}
	tail := extentHeaderSize + int(le.Uint16(block[4:]))*extentEntrySize
	if tail+4 > len(block) || crc32c(in.seed, block[:tail]) != le.Uint32(block[tail:]) {
		return damaged("a node of extents fails its checksum")
	}
	return nil
}
