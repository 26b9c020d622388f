package volume

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/extent"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/loop"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/mount"
)

// fileCopy is one file to be copied by reflinks.
type fileCopy struct {
	from, to string
}

// copyAtOnce copies files so that all copies show one instant: a write that had
// completed before another began is in the copies if the other one is, also
// when they went to different files.
//
//	freeze the filesystems mounted from the files   (they write out what they hold)
//	sync the loop devices of the files              (writes to Block volumes)
//	reflink each file to its copy
//	if there are several:
//	    freeze the pool                             (the instant: every write to any file stalls)
//	    read what changed since the reflinks
//	    thaw the pool
//	    apply that to the copies
//	thaw the filesystems
//
// One reflink alone is atomic: the kernel holds off writes to the file meanwhile.
// Several in a row are not, and a frozen pool takes no reflink; so the reflinks
// are made first and brought up to the instant of the freeze. The pool stands
// still for 1 to 2 ms, nearly all of it the kernel's freezing; 0.05 ms are the
// reading, because little has changed since the reflinks. Who is killed in these
// leaves the pool frozen: Open and Cleanup of package pool thaw it.
//
// On error no copy is left.
func (s *Store) copyAtOnce(copies []fileCopy) (err error) {
	thaw, err := freezeMounted(copies)
	defer func() {
		err = errors.Join(err, thaw())
		if err != nil {
			removeCopies(copies)
		}
	}()
	if err != nil {
		return err
	}
	for _, c := range copies {
		if err := syncDevices(c.from); err != nil {
			return err
		}
	}
	for _, c := range copies {
		if err := reflink(c); err != nil {
			return err
		}
	}
	if len(copies) < 2 {
		return nil
	}
	return s.bringToOneInstant(copies)
}

// freezeMounted freezes the filesystems that are mounted from the files to be
// copied. The function that it returns ends all the freezes it began; it is not
// nil, also when there is an error.
func freezeMounted(copies []fileCopy) (thaw func() error, err error) {
	var thaws []func() error
	thaw = func() error {
		var err error
		for _, thawOne := range thaws {
			err = errors.Join(err, thawOne())
		}
		return err
	}
	for _, c := range copies {
		devices, err := loop.Of(c.from)
		if err != nil {
			return thaw, err
		}
		for _, device := range devices {
			points, err := mount.Of(device.Number)
			if err != nil {
				return thaw, err
			}
			if len(points) == 0 {
				continue
			}
			// All mounts of a device are one filesystem; any of them will do.
			thawOne, err := mount.Freeze(points[0].Target)
			if err != nil {
				return thaw, err
			}
			thaws = append(thaws, thawOne)
		}
	}
	return thaw, nil
}

// syncDevices writes what the loop devices of a file hold in their caches.
func syncDevices(path string) error {
	devices, err := loop.Of(path)
	if err != nil {
		return err
	}
	for _, device := range devices {
		if err := device.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// reflink makes the copy share all blocks of its source.
func reflink(c fileCopy) error {
	source, err := os.Open(c.from)
	if err != nil {
		return fmt.Errorf("open source of copy: %w", err)
	}
	defer func() { _ = source.Close() }()
	target, err := os.OpenFile(c.to, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("create copy: %w", err)
	}
	if err := unix.IoctlFileClone(int(target.Fd()), int(source.Fd())); err != nil {
		return errors.Join(fmt.Errorf("reflink %s to %s: %w", c.from, c.to, err), target.Close())
	}
	if err := target.Close(); err != nil {
		return fmt.Errorf("close copy: %w", err)
	}
	return nil
}

// openCopy is a reflink copy that is being brought up to its source.
type openCopy struct {
	source  extent.File
	target  *os.File
	patches []extent.Patch
}

// bringToOneInstant makes reflink copies that were taken one after the other
// equal to their sources at one instant.
func (s *Store) bringToOneInstant(copies []fileCopy) (err error) {
	opened := make([]*openCopy, 0, len(copies))
	defer func() {
		for _, o := range opened {
			err = errors.Join(err, o.source.Close(), o.target.Close())
		}
	}()
	for _, c := range copies {
		o, err := openForPatching(c)
		if err != nil {
			return err
		}
		opened = append(opened, o)
	}
	if err := s.readMissing(opened); err != nil {
		return err
	}
	for _, o := range opened {
		for _, patch := range o.patches {
			if err := patch.Apply(o.target); err != nil {
				return err
			}
		}
	}
	return nil
}

func openForPatching(c fileCopy) (*openCopy, error) {
	source, err := extent.Open(c.from)
	if err != nil {
		return nil, err
	}
	target, err := os.OpenFile(c.to, os.O_RDWR, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open copy: %w", err), source.Close())
	}
	return &openCopy{source: source, target: target}, nil
}

// readMissing freezes the pool and reads what the copies lack. It must not
// write to the pool: that would wait for the thaw for ever.
func (s *Store) readMissing(opened []*openCopy) (err error) {
	if err := s.pool.Sync(); err != nil { // keeps the freeze short
		return err
	}
	thaw, err := s.pool.Freeze()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, thaw()) }()
	for _, o := range opened {
		o.patches, err = extent.Missing(o.source, extent.File{File: o.target, Size: o.source.Size})
		if err != nil {
			return err
		}
	}
	return nil
}

func removeCopies(copies []fileCopy) {
	for _, c := range copies {
		_ = os.Remove(c.to) // the error that led here is reported
	}
}
