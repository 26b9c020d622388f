// Package disk finds the parts of a disk: its partitions (MBR, GPT), and the logical volumes of LVM2 in them. It reads the
// bytes of a disk and nothing else: no kernel, no device mapper.
//
// Every structure is hostile input. What is out of range, points back at itself or fails its checksum is
// refused, or shown as a part that cannot be read, with the reason.
//
// The formats are those of the UEFI specification 2.10 (GPT, protective MBR), of util-linux (extended partitions) and
// of LVM2 (lib/format_text/layout.h). The package is pure.
package disk

import (
	"errors"
	"fmt"
	"io"
)

// ErrDamaged is wrapped by every error that says that a table violates its format.
var ErrDamaged = errors.New("the disk is damaged")

// mostParts bounds what one disk may have: more is no disk that somebody uses.
const mostParts = 1024

// Part is a piece of a disk, or all of it.
type Part struct {
	// Name is unique: Whole for a disk without parts, the number of a partition, or GROUP/VOLUME.
	Name string
	// Label is the name that a GPT partition has, or empty.
	Label string
	// Size is in bytes.
	Size int64
	// Kind says what a part is that is not read here: swap, LUKS, lvm2 … It is empty for what may have a file system.
	Kind string
	// Reason says, in words for people, why the part cannot be read. Then Content is nil.
	Reason  string
	Content io.ReaderAt
}

// Whole is the name of the only part of a disk without partitions.
const Whole = "disk"

// Find returns the parts of a disk of size bytes. isFileSystem reports whether a file system begins where its argument does: it goes
// before everything else that may be there. An error is one of reading; what is damaged is a part with a Reason.
func Find(r io.ReaderAt, size int64, isFileSystem func(r io.ReaderAt, size int64) (bool, error)) ([]Part, error) {
	s := search{isFileSystem: isFileSystem, room: mostText}
	if err := s.look(Part{Name: Whole, Size: size, Content: r}, true); err != nil {
		return nil, fmt.Errorf("find parts of the disk: %w", err)
	}
	parts, err := s.volumes.parts()
	if err != nil {
		return nil, fmt.Errorf("find logical volumes: %w", err)
	}
	for _, p := range parts {
		// What is in a logical volume is no disk again.
		if p.Content != nil {
			if p, err = s.content(p); err != nil {
				return nil, fmt.Errorf("look at logical volume %s: %w", p.Name, err)
			}
		}
		s.found = append(s.found, p)
	}
	if len(s.found) > mostParts {
		return nil, fmt.Errorf("%w: it has %d parts", ErrDamaged, len(s.found))
	}
	return s.found, nil
}

type search struct {
	isFileSystem func(io.ReaderAt, int64) (bool, error)
	found        []Part
	volumes      volumes
	// room is how many bytes of metadata of LVM may still be read.
	room uint64
}

// look finds out what a part is. A disk may have partitions; a partition may not.
func (s *search) look(p Part, mayBeDisk bool) error {
	if yes, err := s.isFileSystem(p.Content, p.Size); err != nil || yes {
		if yes {
			s.found = append(s.found, p)
		}
		return err
	}
	if mayBeDisk {
		partitions, err := partitionsOf(p.Content, p.Size)
		if err != nil {
			return err
		}
		if partitions != nil {
			return s.partitions(partitions)
		}
	}
	if volume, err := readPhysicalVolume(p.Content, p.Size, &s.room); err != nil && !errors.Is(err, ErrDamaged) {
		return err
	} else if err != nil {
		p.Kind, p.Reason, p.Content = kindLVM, err.Error(), nil
		s.found = append(s.found, p)
		return nil //nolint:nilerr // the part says it
	} else if volume != nil {
		s.volumes = append(s.volumes, volume)
		return nil
	}
	p, err := identify(p)
	s.found = append(s.found, p)
	return err
}

func (s *search) partitions(partitions []Part) error {
	if len(partitions) > mostParts {
		return fmt.Errorf("%w: it has %d partitions", ErrDamaged, len(partitions))
	}
	for _, p := range partitions {
		if p.Reason != "" {
			s.found = append(s.found, p)
			continue
		}
		if err := s.look(p, false); err != nil {
			return fmt.Errorf("look at partition %s: %w", p.Name, err)
		}
	}
	return nil
}

// content is a part that is no disk and no physical volume.
func (s *search) content(p Part) (Part, error) {
	if yes, err := s.isFileSystem(p.Content, p.Size); err != nil || yes {
		return p, err
	}
	return identify(p)
}

// read fills p, or returns ErrDamaged if it is not inside the disk.
func read(r io.ReaderAt, size int64, p []byte, off int64) error {
	if off < 0 || off > size-int64(len(p)) {
		return fmt.Errorf("%w: %d bytes at %d are outside of its %d bytes", ErrDamaged, len(p), off, size)
	}
	if n, err := r.ReadAt(p, off); n < len(p) {
		return fmt.Errorf("read disk at %d: %w", off, err)
	}
	return nil
}
