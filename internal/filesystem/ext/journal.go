package ext

import (
	"sort"
)

// The journal is a file of blocks in the format of jbd2, big endian. Its first block is its superblock.
const (
	journalMagic      = 0xc03b3998
	journalHeaderSize = 12

	journalDescriptor   = 1
	journalCommit       = 2
	journalSuperblockV1 = 3
	journalSuperblockV2 = 4
	journalRevoke       = 5
)

// Features of a journal.
const (
	journalCompatChecksum = 0x1

	journalRevokes     = 0x1
	journal64bit       = 0x2
	journalAsyncCommit = 0x4
	journalCsumV2      = 0x8
	journalCsumV3      = 0x10
	journalFastCommit  = 0x20

	journalKnown = journalRevokes | journal64bit | journalAsyncCommit | journalCsumV2 | journalCsumV3 | journalFastCommit
)

// Flags of the tag of a block.
const (
	tagEscaped  = 0x1 // the block began with the magic number of the journal, and has zeros there
	tagSameUUID = 0x2
	tagLast     = 0x8
)

const (
	// maxLogged bounds the blocks that are kept in mind, about 60 bytes each: 8 GiB of journal at 4 KiB.
	maxLogged = 1 << 21
	// maxPieces bounds where the blocks of the journal are. mkfs makes it in one piece of each group.
	maxPieces = 1 << 16
	// minJournal is how many blocks fast commits leave to the ring (JBD2_MIN_JOURNAL_BLOCKS).
	minJournal = 1024
	// defaultFastBlocks is how many blocks fast commits have if the superblock does not say it.
	defaultFastBlocks = 256
	journalTailSize   = 4
)

// log is what the journal has that is not in its place yet. It has no blocks, but where they are in the journal.
type log struct {
	dev    *device
	runs   []run // of the journal, ascending
	blocks map[uint64]logged
	seed   uint32

	compat, incompat uint32
	// The log is a ring in the blocks [first, last) of the journal. Fast commits are in (last, fastEnd).
	first, last, fastEnd uint32
	start                uint32 // 0 if the journal is empty
	sequence             uint32
}

// logged is the last version of a block.
type logged struct {
	position uint32 // in the journal
	sequence uint32
	checksum uint32
	escaped  bool
}

func (l *log) has(feature uint32) bool { return l.incompat&feature != 0 }

// checksums reports whether each block has a checksum.
func (l *log) checksums() bool { return l.has(journalCsumV2 | journalCsumV3) }

// openLog reads the superblock of the journal, and where its blocks are.
func (f *FileSystem) openLog() (*log, error) {
	number := f.super.u32(0xe0)
	if number == 0 {
		return nil, unsupported("the journal is on another device, with UUID %s", formatUUID(f.super.raw[0xd0:0xe0]))
	}
	in, err := f.readInode(number)
	if err != nil {
		return nil, err
	}
	if in.kind() != modeRegular {
		return nil, damaged("inode %d is no journal", number)
	}
	l := &log{dev: f.dev, blocks: map[uint64]logged{}}
	for r, err := range f.runs(in, f.blocksOf(in)) {
		if err != nil {
			return nil, err
		}
		if len(l.runs) == maxPieces {
			return nil, unsupported("a journal in more than %d pieces", maxPieces)
		}
		l.runs = append(l.runs, r)
	}
	if err := l.readSuperblock(f.super.blockSize); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *log) readSuperblock(blockSize int64) error {
	raw, err := l.block(0)
	if err != nil {
		return err
	}
	version := be.Uint32(raw[4:])
	if be.Uint32(raw) != journalMagic || version != journalSuperblockV1 && version != journalSuperblockV2 {
		return damaged("the journal has no superblock")
	}
	if version == journalSuperblockV2 {
		l.compat, l.incompat = be.Uint32(raw[0x24:]), be.Uint32(raw[0x28:])
	}
	if unknown := l.incompat &^ journalKnown; unknown != 0 {
		return unsupported("the journal has features 0x%x", unknown)
	}
	if l.checksums() {
		if raw[0x50] != 4 {
			return unsupported("the journal has checksums of type %d", raw[0x50])
		}
		if crc32cWithout(^uint32(0), raw[:1024], 0xfc, 4) != be.Uint32(raw[0xfc:]) {
			return damaged("the superblock of the journal fails its checksum")
		}
	}
	l.seed = crc32c(^uint32(0), raw[0x30:0x40])
	if n := be.Uint32(raw[0xc:]); int64(n) != blockSize {
		return damaged("the journal has blocks of %d bytes, and the file system of %d", n, blockSize)
	}
	return l.geometry(raw)
}

// geometry reads where the ring is, and where in it the first transaction.
func (l *log) geometry(raw []byte) error {
	l.last, l.first = be.Uint32(raw[0x10:]), be.Uint32(raw[0x14:])
	l.sequence, l.start = be.Uint32(raw[0x18:]), be.Uint32(raw[0x1c:])
	l.fastEnd = l.last
	if l.has(journalFastCommit) {
		blocks := be.Uint32(raw[0x54:])
		if blocks == 0 {
			blocks = defaultFastBlocks
		}
		if l.last >= minJournal && blocks <= l.last-minJournal {
			l.last -= blocks
		}
	}
	if l.first == 0 || l.first >= l.last || l.start != 0 && (l.start < l.first || l.start >= l.last) {
		return damaged("the journal begins at block %d of [%d,%d)", l.start, l.first, l.last)
	}
	return nil
}

// block returns a block of the journal.
func (l *log) block(position uint32) ([]byte, error) {
	i := sort.Search(len(l.runs), func(i int) bool { return l.runs[i].end() > uint64(position) })
	if i == len(l.runs) || l.runs[i].logical > uint64(position) || l.runs[i].state != data {
		return nil, damaged("the journal has no block %d", position)
	}
	return l.dev.rawBlock(l.runs[i].physical + uint64(position) - l.runs[i].logical)
}

// read returns the version of a block that the journal has.
func (l *log) read(number uint64) ([]byte, bool, error) {
	entry, found := l.blocks[number]
	if !found {
		return nil, false, nil
	}
	block, err := l.block(entry.position)
	if err != nil {
		return nil, false, err
	}
	if !l.blockChecksum(entry, block) {
		return nil, false, damaged("block %d fails its checksum in the journal", number)
	}
	if entry.escaped {
		block = append([]byte(nil), block...)
		be.PutUint32(block, journalMagic)
	}
	return block, true, nil
}

// blockChecksum checks the version of a block: the sequence number of its transaction, and the block as it is in the
// journal.
func (l *log) blockChecksum(entry logged, block []byte) bool {
	if !l.checksums() {
		return true
	}
	var sequence [4]byte
	be.PutUint32(sequence[:], entry.sequence)
	crc := crc32c(crc32c(l.seed, sequence[:]), block)
	if l.has(journalCsumV3) {
		return crc == entry.checksum
	}
	return uint16(crc) == uint16(entry.checksum)
}

// tag says where a block of a transaction belongs.
type tag struct {
	number   uint64
	checksum uint32
	flags    uint32
}

// tags reads the tags of a descriptor block. Their blocks follow it.
func (l *log) tags(block []byte) []tag {
	size := 8
	switch {
	case l.has(journalCsumV3):
		size = 16
	case l.has(journal64bit) && l.has(journalCsumV2):
		size = 14
	case l.has(journal64bit):
		size = 12
	case l.has(journalCsumV2):
		size = 10
	}
	end := len(block)
	if l.checksums() {
		end -= journalTailSize
	}
	var tags []tag
	for off := journalHeaderSize; off+size <= end; {
		b := block[off:]
		t := tag{number: uint64(be.Uint32(b))}
		if l.has(journalCsumV3) {
			t.flags, t.checksum = be.Uint32(b[4:]), be.Uint32(b[12:])
		} else {
			t.checksum, t.flags = uint32(be.Uint16(b[4:])), uint32(be.Uint16(b[6:]))
		}
		if l.has(journal64bit) {
			t.number |= uint64(be.Uint32(b[8:])) << 32
		}
		tags = append(tags, t)
		off += size
		if t.flags&tagSameUUID == 0 {
			off += 16
		}
		if t.flags&tagLast != 0 {
			break
		}
	}
	return tags
}

// revoked reads the blocks that a revoke block names.
func (l *log) revoked(block []byte) ([]uint64, error) {
	size, end := 4, int(be.Uint32(block[journalHeaderSize:]))
	if l.has(journal64bit) {
		size = 8
	}
	most := len(block)
	if l.checksums() {
		most -= journalTailSize
	}
	if end < 0 || end > most {
		return nil, damaged("a revoke block has %d bytes", end)
	}
	var numbers []uint64
	for off := journalHeaderSize + 4; off+size <= end; off += size {
		if size == 8 {
			numbers = append(numbers, be.Uint64(block[off:]))
		} else {
			numbers = append(numbers, uint64(be.Uint32(block[off:])))
		}
	}
	return numbers, nil
}

// tailChecksum checks a descriptor or a revoke block.
func (l *log) tailChecksum(block []byte) bool {
	if !l.checksums() {
		return true
	}
	field := len(block) - journalTailSize
	return crc32cWithout(l.seed, block, field, 4) == be.Uint32(block[field:])
}
