package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
)

const (
	// labelSectors is how many sectors may have the label.
	labelSectors = 4
	headerMagic  = " LVM2 x[5A%r0N*>"
	headerSize   = 512
	// mostText bounds the metadata of all physical volumes of a disk: that of a thousand volumes is some hundred KiB.
	mostText = 8 << 20
	// ignored is the flag of a copy of the metadata that is not in use.
	ignored = 1
)

// physicalVolume is a physical volume of LVM2, with the metadata that it has of its group.
type physicalVolume struct {
	id      string // without dashes
	content io.ReaderAt
	size    int64
	// group is nil if the metadata of this volume is elsewhere.
	group *section
	name  string // of the group
	seqno int64
}

// sumOf is LVM's checksum: CRC-32 with a start value of its own, and not inverted.
func sumOf(b []byte) uint32 {
	const start = 0xf597a6cf
	return ^crc32.Update(^uint32(start), crc32.IEEETable, b)
}

// readPhysicalVolume returns nil if there is no physical volume. room is how much metadata may still be read.
func readPhysicalVolume(r io.ReaderAt, size int64, room *uint64) (*physicalVolume, error) {
	if size < labelSectors*sector {
		return nil, nil
	}
	b := make([]byte, labelSectors*sector)
	if err := read(r, size, b, 0); err != nil {
		return nil, err
	}
	for at := 0; at < len(b); at += sector {
		label := b[at:][:sector]
		if string(label[:8]) != "LABELONE" || string(label[24:32]) != "LVM2 001" {
			continue
		}
		le := binary.LittleEndian
		if sumOf(label[20:]) != le.Uint32(label[16:]) || le.Uint64(label[8:]) != uint64(at/sector) {
			return nil, fmt.Errorf("%w: the label of LVM is wrong", ErrDamaged)
		}
		offset := le.Uint32(label[20:])
		if offset < 32 || offset > sector-40 {
			return nil, fmt.Errorf("%w: the header of LVM is at %d", ErrDamaged, offset)
		}
		return readHeaderLVM(r, size, label[offset:], room)
	}
	return nil, nil
}

// readHeaderLVM reads the header of a physical volume, in what is left of its sector: an ID, a size, and two lists of
// areas (offset, length), each of which ends with zeros: data, and metadata.
func readHeaderLVM(r io.ReaderAt, size int64, h []byte, room *uint64) (*physicalVolume, error) {
	v := &physicalVolume{id: string(h[:32]), content: r, size: size}
	h = h[40:]
	var problem error
	for lists := 0; lists < 2; {
		if len(h) < 16 {
			return nil, fmt.Errorf("%w: the list of areas of LVM has no end", ErrDamaged)
		}
		off, length := binary.LittleEndian.Uint64(h), binary.LittleEndian.Uint64(h[8:])
		h = h[16:]
		switch {
		case off == 0 && length == 0:
			lists++
		case lists == 1:
			text, err := readMetadata(r, size, off, length, room)
			if err != nil && !errors.Is(err, ErrDamaged) {
				return nil, err
			}
			if err == nil && text != "" {
				err = v.take(text)
			}
			if err != nil {
				problem = err // another area may be sound
			}
		}
	}
	if v.group == nil && problem != nil {
		return nil, problem
	}
	return v, nil
}

// readMetadata reads the text of an area. Its header says where in the area it is: a ring, behind the
// header. It is empty if the area holds none.
func readMetadata(r io.ReaderAt, size int64, off, length uint64, room *uint64) (string, error) {
	if off > uint64(size) || length > uint64(size)-off || length <= headerSize {
		return "", fmt.Errorf("%w: an area of metadata of LVM has %d bytes at %d", ErrDamaged, length, off)
	}
	h := make([]byte, headerSize)
	if err := read(r, size, h, int64(off)); err != nil {
		return "", err
	}
	le := binary.LittleEndian
	if !isMetadataHeader(h, off, length) {
		return "", fmt.Errorf("%w: the header of the metadata of LVM is wrong", ErrDamaged)
	}
	at, n, sum, flags := le.Uint64(h[40:]), le.Uint64(h[48:]), le.Uint32(h[56:]), le.Uint32(h[60:])
	if n == 0 || flags&ignored != 0 {
		return "", nil
	}
	if n > *room {
		return "", fmt.Errorf("%w: the metadata of LVM has more than %d bytes", ErrDamaged, mostText)
	}
	*room -= n
	if at < headerSize || at >= length || n > length-headerSize {
		return "", fmt.Errorf("%w: the metadata of LVM has %d bytes at %d of an area of %d", ErrDamaged, n, at, length)
	}
	text := make([]byte, n)
	first := min(n, length-at)
	if err := read(r, size, text[:first], int64(off+at)); err != nil {
		return "", err
	}
	if err := read(r, size, text[first:], int64(off+headerSize)); err != nil {
		return "", err
	}
	if sumOf(text) != sum {
		return "", fmt.Errorf("%w: the checksum of the metadata of LVM is wrong", ErrDamaged)
	}
	return string(text), nil
}

// isMetadataHeader checks the header of an area.
func isMetadataHeader(h []byte, off, length uint64) bool {
	le := binary.LittleEndian
	return sumOf(h[4:]) == le.Uint32(h) && string(h[4:20]) == headerMagic && le.Uint32(h[20:]) == 1 && le.Uint64(h[24:]) == off && le.Uint64(h[32:]) == length
}

// take parses metadata, and keeps it if it is newer than what is there.
func (v *physicalVolume) take(text string) error {
	root, err := parseText(text)
	if err != nil {
		return err
	}
	if len(root.names) != 1 {
		return fmt.Errorf("%w: the metadata of LVM has %d groups", ErrDamaged, len(root.names))
	}
	group := root.sections[root.names[0]]
	seqno, err := group.number("seqno", 1<<62)
	if err != nil {
		return err
	}
	if v.group == nil || seqno > v.seqno {
		v.group, v.name, v.seqno = group, root.names[0], seqno
	}
	return nil
}

func withoutDashes(id string) string { return strings.ReplaceAll(id, "-", "") }
