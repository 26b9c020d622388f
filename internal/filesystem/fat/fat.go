// Package fat reads FAT12, FAT16 and FAT32, with long names, as Linux shows them as vfat by default. The format is
// Microsoft's "FAT: General Overview of On-Disk Format" 1.03.
//
// FAT keeps no owners, links or attributes. A file belongs to root; its mode is 0755, or 0555 if it is read-only.
// Times have no time zone: they are taken for UTC. A file has no inode. Its ID is the place of its entry on the device.
package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/blockmover/blockmover/internal/filesystem"
)

const (
	bootSize = 512
	// Most clusters of FAT12 and FAT16: what has more is the next kind.
	mostFAT12 = 4084
	mostFAT16 = 65524
	mostFAT32 = 0x0ffffff5
	// firstCluster is the number of the first cluster of the data.
	firstCluster = 2
)

// FileSystem is an open file system.
type FileSystem struct {
	device io.ReaderAt
	size   int64

	bits    int // of an entry of the table: 12, 16 or 32
	cluster int64
	// table is where the table in use begins. clusters is how many there are.
	table    int64
	clusters uint32
	// rootAt and rootEntries are the root directory of FAT12 and FAT16. FAT32 has rootCluster.
	rootAt      int64
	rootEntries int64
	rootCluster uint32
	// data is where the first cluster is.
	data int64

	description filesystem.Description
}

var _ filesystem.FileSystem = (*FileSystem)(nil)

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", filesystem.ErrDamaged, fmt.Sprintf(format, args...))
}

// Open opens the file system on a device of size bytes.
func Open(r io.ReaderAt, size int64) (*FileSystem, error) {
	f, err := open(r, size)
	if err != nil {
		return nil, fmt.Errorf("open FAT: %w", err)
	}
	return f, nil
}

func open(r io.ReaderAt, size int64) (*FileSystem, error) {
	if size < bootSize {
		return nil, filesystem.ErrOther
	}
	f := &FileSystem{device: r, size: size}
	boot := make([]byte, bootSize)
	if err := f.read(boot, 0); err != nil {
		return nil, err
	}
	switch string(boot[3:11]) {
	case "EXFAT   ":
		return nil, fmt.Errorf("%w: exFAT", filesystem.ErrUnsupported)
	case "NTFS    ":
		return nil, filesystem.ErrOther
	}
	if err := f.geometry(boot); err != nil {
		return nil, err
	}
	if err := f.describe(boot); err != nil {
		return nil, err
	}
	return f, nil
}

// isBoot reports whether a sector can be the first one of FAT: nothing marks FAT for sure.
func isBoot(boot []byte) bool {
	le := binary.LittleEndian
	sector, perCluster, media := le.Uint16(boot[11:]), boot[13], boot[21]
	jump := boot[0] == 0xe9 || boot[0] == 0xeb
	return jump && boot[510] == 0x55 && boot[511] == 0xaa &&
		sector >= 512 && sector <= 4096 && sector&(sector-1) == 0 &&
		perCluster != 0 && perCluster&(perCluster-1) == 0 &&
		le.Uint16(boot[14:]) != 0 && boot[16] != 0 && (media == 0xf0 || media >= 0xf8)
}

// geometry reads the BIOS parameter block.
func (f *FileSystem) geometry(boot []byte) error {
	if !isBoot(boot) {
		return filesystem.ErrOther
	}
	le := binary.LittleEndian
	sector, perCluster := int64(le.Uint16(boot[11:])), int64(boot[13])
	reserved, tables := int64(le.Uint16(boot[14:])), int64(boot[16])
	f.rootEntries = int64(le.Uint16(boot[17:]))
	sectors := int64(le.Uint16(boot[19:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(boot[32:]))
	}
	length := int64(le.Uint16(boot[22:]))
	wide := length == 0
	use := int64(0)
	if wide {
		length = int64(le.Uint32(boot[36:]))
		if flags := le.Uint16(boot[40:]); flags&0x80 != 0 { // the tables are no copies of each other
			use = int64(flags & 0xf)
		}
		f.rootCluster = le.Uint32(boot[44:])
	}
	if length == 0 || sectors == 0 {
		return filesystem.ErrOther
	}
	if use >= tables {
		return damaged("table %d is in use, and there are %d", use, tables)
	}
	f.cluster = sector * perCluster
	f.table = (reserved + use*length) * sector
	f.rootAt = (reserved + tables*length) * sector
	f.data = f.rootAt + (f.rootEntries*entrySize+sector-1)/sector*sector
	if f.data > sectors*sector {
		return damaged("its tables have %d bytes, and the whole has %d", f.data, sectors*sector)
	}
	return f.chooseKind(wide, (sectors*sector-f.data)/f.cluster, length*sector)
}

// chooseKind finds out how long the entries of the table of length bytes are.
func (f *FileSystem) chooseKind(wide bool, count, length int64) error {
	f.bits = 16
	most := int64(mostFAT16)
	switch {
	case wide:
		f.bits, most = 32, mostFAT32
		f.rootEntries = 0
	case f.rootEntries == 0:
		return damaged("it has no root directory")
	case count <= mostFAT12:
		f.bits, most = 12, mostFAT12
	}
	if count > most {
		return damaged("it has %d clusters, and a table of %d bits has at most %d", count, f.bits, most)
	}
	f.clusters = uint32(min(count, length*8/int64(f.bits)-firstCluster))
	return nil
}

func (f *FileSystem) describe(boot []byte) error {
	extended := boot[36:]
	if f.bits == 32 {
		extended = boot[64:]
	}
	f.description = filesystem.Description{Kind: "vfat"}
	if signature := extended[2]; signature == 0x28 || signature == 0x29 {
		serial := binary.LittleEndian.Uint32(extended[3:])
		f.description.UUID = fmt.Sprintf("%04X-%04X", serial>>16, serial&0xffff)
		if label := strings.TrimRight(string(extended[7:18]), " \x00"); signature == 0x29 && label != "NO NAME" {
			f.description.Label = oem(label)
		}
	}
	if extended[1]&1 != 0 {
		f.description.Notes = append(f.description.Notes, "The file system was in use: what its system had not written yet is missing.")
	}
	// The label in the root directory counts. A root that cannot be read is an error of whoever lists it.
	for e, err := range f.entries(f.Root()) {
		if err != nil {
			if errors.Is(err, filesystem.ErrDamaged) {
				break
			}
			return err
		}
		if e.label {
			f.description.Label = e.name
			break
		}
	}
	return nil
}

// Describe implements filesystem.FileSystem.
func (f *FileSystem) Describe() filesystem.Description { return f.description }

// read fills p from a place on the device. What ends too early is damaged.
func (f *FileSystem) read(p []byte, off int64) error {
	if off < 0 || off > f.size-int64(len(p)) {
		return damaged("%d bytes at %d are past the end of the device of %d bytes", len(p), off, f.size)
	}
	if n, err := f.device.ReadAt(p, off); n < len(p) {
		return fmt.Errorf("read device at %d: %w", off, err)
	}
	return nil
}
