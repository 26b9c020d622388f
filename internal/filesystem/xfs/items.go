package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// buffer takes a changed metadata block (xfs_buf_log_format).
func (r *replayer) buffer(lsn uint64, i *item) error {
	le, b := binary.LittleEndian, i.regions[0]
	if len(b) < 20 {
		return damaged("a logged buffer has a description of %d bytes", len(b))
	}
	flags, length := le.Uint16(b[4:]), int64(le.Uint16(b[6:]))*sector
	start, words := le.Uint64(b[8:]), int(le.Uint32(b[16:]))
	if start > uint64(r.super.deviceSize)/sector || length == 0 || length > maxBuffer || int64(start)*sector > r.super.deviceSize-length {
		return damaged("a logged buffer of %d bytes at sector %d is outside of the device", length, start)
	}
	off := int64(start) * sector
	switch {
	case flags&bufferCancel != 0:
		r.overlay.cancel(r.super, off, length)
		return nil
	case flags&(bufferInodes|bufferDquots) != 0:
		return nil // the list of deleted inodes that are still open, and quotas
	}
	if words < 0 || len(b) < 20+4*words {
		return damaged("a logged buffer has a map of %d words in %d bytes", words, len(b))
	}
	return r.chunks(lsn, off, length, b[20:20+4*words], i)
}

// chunks takes the chunks of a buffer that a map of bits names. A run of bits is in one region, or in several if it crosses a
// page of memory.
func (r *replayer) chunks(lsn uint64, off, length int64, bits []byte, i *item) error {
	// Words of 32 bits, little-endian, are bytes in ascending order.
	logged := func(bit int) bool { return bit < 8*len(bits) && bits[bit/8]>>(bit%8)&1 != 0 }
	region := 1
	for bit := 0; bit < 8*len(bits); {
		if !logged(bit) {
			bit++
			continue
		}
		if region >= len(i.regions) {
			return damaged("a logged buffer at byte %d has only %d regions", off, len(i.regions))
		}
		data := i.regions[region]
		n := len(data) / chunkSize
		if n == 0 || int64(bit+n)*chunkSize > length {
			return damaged("a logged buffer at byte %d has %d bytes for byte %d", off, len(data), bit*chunkSize)
		}
		for j := range n {
			at := bit + j
			if !logged(at) {
				n = j // the run ends here
				break
			}
			r.overlay.putChunk(off+int64(at)*chunkSize, &chunk{lsn, r.order, off, bytes.Clone(data[j*chunkSize : (j+1)*chunkSize])})
		}
		bit += n
		region++
	}
	return r.checkMemory()
}

// Flags of what is logged of an inode.
const (
	loggedDataLocal   = 0x002
	loggedDataExtents = 0x004
	loggedDataRoot    = 0x008
	loggedDevice      = 0x010
	loggedAttrLocal   = 0x040
	loggedAttrExtents = 0x080
	loggedAttrRoot    = 0x100
	loggedOwners      = 0x200 | 0x400
	loggedData        = loggedDataLocal | loggedDataExtents | loggedDataRoot
	loggedAttributes  = loggedAttrLocal | loggedAttrExtents | loggedAttrRoot
)

// inode takes a changed inode (xfs_inode_log_format). Old 32-bit systems leave out four bytes.
func (r *replayer) inode(lsn uint64, i *item) error {
	le, b := binary.LittleEndian, i.regions[0]
	if len(b) == 52 {
		b = slices.Concat(b[:12], make([]byte, 4), b[12:])
	}
	if len(b) < 56 || len(i.regions) < 2 {
		return damaged("a logged inode has a description of %d bytes and %d regions", len(b), len(i.regions))
	}
	fields, ino := le.Uint32(b[4:]), le.Uint64(b[16:])
	start, length := le.Uint64(b[40:]), int64(int32(le.Uint32(b[48:])))*sector
	off, err := r.super.inodeOffset(ino)
	if err != nil {
		return fmt.Errorf("a logged inode: %w", err)
	}
	if start > uint64(r.super.deviceSize)/sector || int64(start)*sector+int64(int32(le.Uint32(b[52:]))) != off || length <= 0 {
		return damaged("logged inode %d is not at byte %d", ino, off)
	}
	core := i.regions[1]
	if len(core) < r.super.loggedCore() {
		return damaged("logged inode %d has %d bytes", ino, len(core))
	}
	if le.Uint16(core) != inodeMagic {
		return damaged("logged inode %d is none", ino)
	}
	c := &inodeChange{lsn: lsn, order: r.order, buffer: int64(start) * sector, length: length, core: core}
	if fields&loggedDevice != 0 {
		c.device = binary.BigEndian.AppendUint32(nil, le.Uint32(b[24:]))
	}
	rest := i.regions[2:]
	if fields&loggedData != 0 && len(rest) > 0 {
		c.data, c.dataIsRoot, rest = rest[0], fields&loggedDataRoot != 0, rest[1:]
	}
	if fields&loggedAttributes != 0 && len(rest) > 0 {
		c.attributes, c.attributesAreRoot = rest[0], fields&loggedAttrRoot != 0
	}
	if fields&loggedOwners != 0 {
		r.overlay.owners[ino] = true
	}
	r.overlay.putInode(off, c)
	return r.checkMemory()
}

// create takes a chunk of new inodes (xfs_icreate_log).
func (r *replayer) create(i *item) error {
	be, b := binary.BigEndian, i.regions[0]
	if len(b) < 28 {
		return damaged("a logged chunk of inodes has a description of %d bytes", len(b))
	}
	group, block, blocks := be.Uint32(b[4:]), be.Uint32(b[8:]), be.Uint32(b[20:])
	off, err := r.super.blockOffset(uint64(group)<<r.super.groupBlocksLog|uint64(block), uint64(blocks))
	size := int64(blocks) << r.super.blockLog
	if err == nil && (size == 0 || size > maxInodesCreatedSize) {
		err = damaged("it has %d bytes", size)
	}
	if err != nil {
		return fmt.Errorf("a logged chunk of inodes: %w", err)
	}
	for at := off; at < off+size; at += r.super.blockSize {
		if _, found := r.overlay.created[at]; !found {
			r.overlay.bytes += createdCost
		}
		r.overlay.created[at] = r.order
	}
	return r.checkMemory()
}

// exchangeAttributes says that two files exchange their attributes, not their content.
const exchangeAttributes = 1 << 0

// intentKey names an intent: a change that takes several transactions, of which the first says what will be done.
type intentKey struct {
	kind int
	id   uint64
}

type intent struct {
	inodes  []uint64
	changes unfinished
}

// intent remembers a change that matters to a reader.
func (r *replayer) intent(i *item) error {
	le, b := binary.LittleEndian, i.regions[0]
	if len(b) < 24 {
		return damaged("an intent in the log has %d bytes", len(b))
	}
	it := intent{inodes: []uint64{le.Uint64(b[16:])}, changes: unfinished{content: true}}
	switch i.kind() {
	case itemAttribute:
		it.changes = unfinished{attributes: true}
	case itemExchange:
		if len(b) < 88 {
			return damaged("an intent in the log has %d bytes", len(b))
		}
		it.inodes = append(it.inodes, le.Uint64(b[24:]))
		it.changes.attributes = le.Uint64(b[64:])&exchangeAttributes != 0
		it.changes.content = !it.changes.attributes
	}
	key := intentKey{i.kind(), le.Uint64(b[8:])}
	if _, found := r.intents[key]; !found {
		r.pending += regionCost
	}
	r.intents[key] = it
	return r.checkMemory()
}

// done forgets an intent.
func (r *replayer) done(i *item) error {
	if len(i.regions[0]) < 16 {
		return damaged("the end of an intent in the log has %d bytes", len(i.regions[0]))
	}
	key := intentKey{i.kind() - 1, binary.LittleEndian.Uint64(i.regions[0][8:])}
	if _, found := r.intents[key]; found {
		delete(r.intents, key)
		r.pending -= regionCost
	}
	return nil
}

// noteUnfinished keeps what is left of the intents.
func (r *replayer) noteUnfinished() {
	for it := range maps.Values(r.intents) {
		for _, ino := range it.inodes {
			was := r.overlay.unfinished[ino]
			r.overlay.unfinished[ino] = unfinished{was.content || it.changes.content, was.attributes || it.changes.attributes}
		}
	}
}
