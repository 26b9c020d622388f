package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
	"unicode/utf16"
)

const (
	sector = 512
	// mostLogical is how many logical partitions are followed.
	mostLogical = 128
	// mostTable is the largest array of entries of a GPT that is read: 4096 of the usual size.
	mostTable = 512 << 10

	typeProtective = 0xee
)

// partitionsOf returns the partitions of a disk, or nil if it has no table.
func partitionsOf(r io.ReaderAt, size int64) ([]Part, error) {
	if size < 2*sector {
		return nil, nil
	}
	mbr := make([]byte, sector)
	if err := read(r, size, mbr, 0); err != nil {
		return nil, err
	}
	protected := isMBR(mbr) && (mbr[446+4] == typeProtective || mbr[462+4] == typeProtective || mbr[478+4] == typeProtective || mbr[494+4] == typeProtective)
	for _, block := range []int64{512, 4096} { // the sizes of a logical block
		found, err := readGPT(r, size, block, protected)
		if err != nil && !errors.Is(err, ErrDamaged) {
			return nil, err
		}
		if err == nil && found != nil {
			return found, nil
		}
		if err != nil && block == 4096 {
			return []Part{{Name: Whole, Size: size, Kind: "gpt", Reason: err.Error()}}, nil
		}
	}
	if protected || !isMBR(mbr) {
		return nil, nil
	}
	return readMBR(r, size, mbr)
}

func isMBR(b []byte) bool { return b[510] == 0x55 && b[511] == 0xaa }

// readGPT returns nil if there is no such table.
func readGPT(r io.ReaderAt, size, block int64, protected bool) ([]Part, error) {
	if size < 3*block {
		return nil, nil
	}
	found, err := readHeader(r, size, block, 1)
	if err == nil || !errors.Is(err, ErrDamaged) {
		return found, err
	}
	// Without the header and the protective MBR, there may be an old copy at the end.
	if errors.Is(err, errNoHeader) && !protected {
		return nil, nil
	}
	if found, copyErr := readHeader(r, size, block, size/block-1); copyErr == nil || !errors.Is(copyErr, ErrDamaged) {
		return found, copyErr
	}
	return nil, err
}

var errNoHeader = fmt.Errorf("%w: it has no table of partitions (GPT)", ErrDamaged)

// readHeader reads the header in a block, and the entries.
func readHeader(r io.ReaderAt, size, block, at int64) ([]Part, error) {
	h := make([]byte, block)
	if err := read(r, size, h, at*block); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if string(h[:8]) != "EFI PART" {
		return nil, errNoHeader
	}
	length, sum := int64(le.Uint32(h[12:])), le.Uint32(h[16:])
	if length < 92 || length > block {
		return nil, fmt.Errorf("%w: the header of the GPT has %d bytes", ErrDamaged, length)
	}
	clear(h[16:20])
	if crc32.ChecksumIEEE(h[:length]) != sum {
		return nil, fmt.Errorf("%w: the checksum of the header of the GPT is wrong", ErrDamaged)
	}
	if mine := le.Uint64(h[24:]); mine != uint64(at) {
		return nil, fmt.Errorf("%w: the header of the GPT in block %d says that it is in block %d", ErrDamaged, at, mine)
	}
	start, count, entry := le.Uint64(h[72:]), int64(le.Uint32(h[80:])), int64(le.Uint32(h[84:]))
	if entry < 128 || entry&(entry-1) != 0 || count > mostTable/entry || start > uint64(size/block) {
		return nil, fmt.Errorf("%w: the GPT has %d entries of %d bytes in block %d", ErrDamaged, count, entry, start)
	}
	table := make([]byte, count*entry)
	if err := read(r, size, table, int64(start)*block); err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(table) != le.Uint32(h[88:]) {
		return nil, fmt.Errorf("%w: the checksum of the entries of the GPT is wrong", ErrDamaged)
	}
	partitions := []Part{}
	for i := range count {
		e := table[i*entry:][:entry]
		if bytes.Equal(e[:16], make([]byte, 16)) {
			continue
		}
		partitions = append(partitions, newPartition(r, size, int(i+1), labelOf(e[56:128]), le.Uint64(e[32:]), le.Uint64(e[40:]), block))
	}
	return partitions, nil
}

// newPartition cuts a partition out of a disk. first and last are blocks.
func newPartition(r io.ReaderAt, size int64, number int, label string, first, last uint64, block int64) Part {
	p := Part{Name: strconv.Itoa(number), Label: label}
	if blocks := uint64(size / block); first == 0 || first > last || last >= blocks {
		p.Reason = fmt.Sprintf("it reaches from block %d to %d, and the disk has %d", first, last, blocks)
		return p
	}
	p.Size = int64(last-first+1) * block
	p.Content = io.NewSectionReader(r, int64(first)*block, p.Size)
	return p
}

// labelOf is the name in an entry of a GPT.
func labelOf(b []byte) string {
	units := make([]uint16, 0, len(b)/2)
	for i := 0; i+1 < len(b); i += 2 {
		u := binary.LittleEndian.Uint16(b[i:])
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return strings.ToValidUTF8(string(utf16.Decode(units)), "?")
}

// entryMBR is an entry of a table in a sector.
type entryMBR struct {
	kind        byte
	first, size int64 // in sectors
}

func entriesOf(b []byte) [4]entryMBR {
	var entries [4]entryMBR
	for i := range entries {
		e := b[446+16*i:]
		entries[i] = entryMBR{e[4], int64(binary.LittleEndian.Uint32(e[8:])), int64(binary.LittleEndian.Uint32(e[12:]))}
	}
	return entries
}

func (e entryMBR) empty() bool { return e.kind == 0 || e.size == 0 }

func (e entryMBR) extended() bool { return e.kind == 0x05 || e.kind == 0x0f || e.kind == 0x85 }

// readMBR returns nil if the sector is no table: the signature is also that of boot sectors of file systems.
func readMBR(r io.ReaderAt, size int64, mbr []byte) ([]Part, error) {
	for i := range 4 {
		if flag := mbr[446+16*i]; flag&0x7f != 0 {
			return nil, nil
		}
	}
	var partitions []Part
	logical := 5
	for i, e := range entriesOf(mbr) {
		switch {
		case e.empty():
		case e.extended():
			found, err := readExtended(r, size, e, &logical)
			if err != nil {
				return nil, err
			}
			partitions = append(partitions, found...)
		default:
			partitions = append(partitions, newPartition(r, size, i+1, "", uint64(e.first), uint64(e.first+e.size-1), sector))
		}
	}
	return partitions, nil
}

// readExtended follows the chain of tables in an extended partition. What is wrong with the chain is a part that cannot be
// read.
func readExtended(r io.ReaderAt, size int64, extended entryMBR, number *int) ([]Part, error) {
	var partitions []Part
	end := func(format string, args ...any) []Part {
		return append(partitions, Part{
			Name: strconv.Itoa(*number), Kind: "extended", Reason: "the chain of logical partitions is damaged: " + fmt.Sprintf(format, args...),
		})
	}
	seen := map[int64]bool{}
	for at := extended.first; ; {
		if seen[at] || len(seen) == mostLogical {
			return end("it is a loop, or has more than %d", mostLogical), nil
		}
		seen[at] = true
		b := make([]byte, sector)
		if err := read(r, size, b, at*sector); err != nil {
			if errors.Is(err, ErrDamaged) {
				return end("sector %d is outside of the disk", at), nil
			}
			return nil, err
		}
		if !isMBR(b) {
			return end("sector %d is no table", at), nil
		}
		next := int64(0)
		for _, e := range entriesOf(b) {
			switch {
			case e.empty():
			case e.extended():
				next = extended.first + e.first
			default:
				first := uint64(at + e.first)
				partitions = append(partitions, newPartition(r, size, *number, "", first, first+uint64(e.size)-1, sector))
				*number++
			}
		}
		if next == 0 {
			return partitions, nil
		}
		at = next
	}
}
