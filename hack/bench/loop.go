package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// loopDevice is a file in memory as a block device. The kernel detaches it when it is closed
// last, so it does not outlive this process.
type loopDevice struct {
	file string
	node *os.File
}

func attachLoop(file string) (*loopDevice, error) {
	backing, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close() //nolint:errcheck // the device has it open itself
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w; make bench needs root", err)
	}
	defer control.Close() //nolint:errcheck // it is only asked
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
	for range 64 { // others attach devices too
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("get free loop device: %w", err)
		}
		node, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", number), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(node.Fd()), &config)
		if err == nil {
			return &loopDevice{file: file, node: node}, nil
		}
		if err = errors.Join(err, node.Close()); !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("attach %s: %w", file, err)
		}
	}
	return nil, fmt.Errorf("attach %s: no free loop device", file)
}

// path is the name of the device.
func (d *loopDevice) path() string { return d.node.Name() }

// forget drops the cache of the device, after its file was changed.
func (d *loopDevice) forget() error {
	if err := d.node.Sync(); err != nil {
		return err
	}
	return unix.IoctlSetInt(int(d.node.Fd()), unix.BLKFLSBUF, 0)
}

func (d *loopDevice) close() error { return d.node.Close() }

// punch frees the memory of a part of a file, which then is zero.
func punch(f *os.File, offset, length int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
	if err != nil {
		return fmt.Errorf("punch hole in %s: %w", f.Name(), err)
	}
	return nil
}
