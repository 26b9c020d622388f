package xfs

import (
	"bytes"
	"encoding/binary"
	"slices"
)

const (
	chunkSize = 128 // XFS_BLF_CHUNK: the log keeps buffers in chunks of this size

	// maxOverlay bounds the logged bytes that the overlay keeps, uncommitted transactions included.
	maxOverlay = 256 << 20
)

// overlay is what the log changes. It does not change any more once the log is read.
type overlay struct {
	// chunks has the newest logged bytes of a chunk, by its offset on the device.
	chunks map[int64]*chunk
	// inodes has the logged changes of an inode, oldest first, by its offset on the device.
	inodes map[int64][]*inodeChange
	// created has the blocks in which inodes begin anew, by their offset on the device, and when they do.
	created map[int64]int
	// owners has the inodes whose B+tree blocks get a new owner (a swap of extents).
	owners map[uint64]bool
	// unfinished says what an intent that is not done would still change, by inode.
	unfinished map[uint64]unfinished
	bytes      int64
}

// unfinished says which half of a file may be half changed.
type unfinished struct{ content, attributes bool }

// chunk is the newest change of 128 bytes.
type chunk struct {
	lsn uint64
	// order counts the changes of the whole log: a change with a larger one is newer.
	order int
	// buffer is where the buffer starts that was logged. The LSN of the device's version is there.
	buffer int64
	data   []byte
}

// inodeChange is a logged inode. What was not logged is nil.
type inodeChange struct {
	lsn    uint64
	order  int
	buffer int64 // of the inode cluster, and its length: both identify it to a cancel
	length int64

	core              []byte // as logged: little-endian
	data, attributes  []byte
	dataIsRoot        bool // data is the root of a B+tree, in its form in memory
	attributesAreRoot bool
	device            []byte // 4 bytes, big-endian
}

func newOverlay() *overlay {
	return &overlay{
		chunks: map[int64]*chunk{}, inodes: map[int64][]*inodeChange{}, created: map[int64]int{},
		owners: map[uint64]bool{}, unfinished: map[uint64]unfinished{},
	}
}

func (o *overlay) putChunk(off int64, c *chunk) {
	if _, found := o.chunks[off]; !found {
		o.bytes += chunkSize
	}
	o.chunks[off] = c
}

// putInode adds a change, and drops older ones that it hides: those whose forks are logged again.
func (o *overlay) putInode(off int64, c *inodeChange) {
	changes := slices.DeleteFunc(o.inodes[off], func(old *inodeChange) bool {
		hidden := (old.data == nil || c.data != nil) && (old.attributes == nil || c.attributes != nil) && (old.device == nil || c.device != nil)
		if hidden {
			o.bytes -= old.size()
		}
		return hidden
	})
	o.inodes[off] = append(changes, c)
	o.bytes += c.size()
}

func (c *inodeChange) size() int64 { return int64(len(c.core) + len(c.data) + len(c.attributes)) }

// cancel forgets what was kept of a buffer that was freed. What comes later is kept again.
//
// The kernel collects all cancels first, and skips what they cancel. To forget comes to the same.
func (o *overlay) cancel(s *superblock, buffer, length int64) {
	for off := buffer; off < buffer+length; off += chunkSize {
		if c, found := o.chunks[off]; found && c.buffer == buffer {
			delete(o.chunks, off)
			o.bytes -= chunkSize
		}
	}
	for off := buffer; off < buffer+length; off += s.inodeSize {
		changes, found := o.inodes[off]
		if !found {
			continue
		}
		changes = slices.DeleteFunc(changes, func(c *inodeChange) bool {
			cancelled := c.buffer == buffer && c.length == length
			if cancelled {
				o.bytes -= c.size()
			}
			return cancelled
		})
		o.inodes[off] = changes
		if len(changes) == 0 {
			delete(o.inodes, off)
		}
	}
	for off := buffer &^ (s.blockSize - 1); off < buffer+length; off += s.blockSize {
		if _, found := o.created[off]; found {
			delete(o.created, off)
			o.bytes -= createdCost
		}
	}
}

// read returns n bytes of metadata at off with the changes of the log, and whether there are any. Changes of inodes are
// not among them: see inodeBytes.
func (f *FileSystem) read(off int64, n int) (b []byte, replayed bool, err error) {
	if b, err = f.device.read(off, n); err != nil || len(f.overlay.chunks) == 0 {
		return b, false, err
	}
	for at := off &^ (chunkSize - 1); at < off+int64(n); at += chunkSize {
		c, err := f.chunkAt(at)
		if err != nil {
			return nil, false, err
		}
		if c == nil {
			continue
		}
		replayed = true
		if at >= off {
			copy(b[at-off:], c.data)
		} else {
			copy(b, c.data[off-at:])
		}
	}
	return b, replayed, nil
}

// chunkAt returns the logged chunk at off if it is newer than what is on the device.
func (f *FileSystem) chunkAt(off int64) (*chunk, error) {
	c, found := f.overlay.chunks[off]
	if !found || !f.super.v5 {
		return c, nil
	}
	head := make([]byte, min(512, f.super.deviceSize-c.buffer))
	if err := f.device.readInto(head, c.buffer); err != nil {
		return nil, err
	}
	if lsn := f.super.bufferLSN(head); lsn != 0 && lsn != 1<<64-1 && lsn >= c.lsn {
		return nil, nil
	}
	return c, nil
}

// bufferLSN returns the LSN of a version 5 metadata block, or 0 if it is none of this file system
// (xlog_recover_get_buf_lsn). What the block will be does not matter, but what it is.
func (s *superblock) bufferLSN(b []byte) uint64 {
	be := binary.BigEndian
	if len(b) < 512 {
		return 0
	}
	at := func(uuid, lsn int) uint64 {
		if !bytes.Equal(b[uuid:uuid+16], s.metaUUID[:]) {
			return 0
		}
		return be.Uint64(b[lsn:])
	}
	switch be.Uint32(b) {
	case 0x41423342, 0x41423343, 0x49414233, 0x46494233, 0x524d4233, 0x52334643: // AB3B AB3C IAB3 FIB3 RMB3 R3FC: short B+tree blocks
		return at(32, 24)
	case bmapMagic5:
		return at(40, 32)
	case 0x58414746: // XAGF
		return at(64, 208)
	case 0x5841464c: // XAFL
		return at(8, 24)
	case 0x58414749: // XAGI
		return at(296, 320)
	case symlinkMagic:
		return at(symlinkIdentity.uuid, symlinkIdentity.lsn)
	case directoryBlockMagic5, directoryDataMagic5, 0x58444633: // XDF3
		return at(directoryIdentity.uuid, directoryIdentity.lsn)
	case remoteMagic:
		// Attribute values are not logged, so their LSN says nothing.
		return 0
	case superblockMagic:
		return at(32, 240)
	}
	switch be.Uint16(b[8:]) {
	case 0x3df1, 0x3dff, leafMagic5, nodeMagic5: // XFS_DIR3_LEAF1_MAGIC, XFS_DIR3_LEAFN_MAGIC
		return at(leafIdentity.uuid, leafIdentity.lsn)
	}
	return 0
}
