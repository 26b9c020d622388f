// Package loop attaches files to loop devices and takes them off again.
//
// Nothing is remembered between calls: a device is found again by the file
// behind it (device number and inode), so a restarted process sees what an
// earlier one attached. The machine is shared with others; nothing here touches
// a loop device that does not lead back to a file of the caller.
package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// controlPath is the kernel's allocator of loop devices.
const controlPath = "/dev/loop-control"

// attachAttempts bounds the race with other processes for a free device.
const attachAttempts = 64

// Device is an attached loop device.
type Device struct {
	// Path is the device node, such as /dev/loop7.
	Path string
	// Number is the device number, as unix.Major and unix.Minor read it.
	Number uint64
	// ReadOnly tells that the kernel refuses writes to the device.
	ReadOnly bool

	backing uint64 // number of the block device that the backing file lies on, or is
	fileDev uint64 // device and inode of the backing file itself
	fileIno uint64
}

// Config says how a file is attached.
type Config struct {
	// BlockSize is the logical block size; zero means 512.
	BlockSize uint32
	// ReadOnly makes the kernel refuse writes.
	ReadOnly bool
}

// Attach attaches the file at path to a free loop device.
func Attach(path string, config Config) (Device, error) {
	mode, flags := os.O_RDWR, uint32(0)
	if config.ReadOnly {
		mode, flags = os.O_RDONLY, unix.LO_FLAGS_READ_ONLY
	}
	backing, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return Device{}, fmt.Errorf("open backing file: %w", err)
	}
	defer func() { _ = backing.Close() }()

	loopConfig := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: config.BlockSize, Info: unix.LoopInfo64{Flags: flags}}
	copy(loopConfig.Info.File_name[:len(loopConfig.Info.File_name)-1], path)
	for range attachAttempts {
		device, err := configureFree(&loopConfig, mode)
		if errors.Is(err, unix.EBUSY) {
			continue // another process was faster
		}
		if err != nil {
			return Device{}, fmt.Errorf("attach %s: %w", path, err)
		}
		return device, nil
	}
	return Device{}, fmt.Errorf("attach %s: no free loop device in %d attempts", path, attachAttempts)
}

// configureFree asks the kernel for an unused device and configures it.
func configureFree(config *unix.LoopConfig, mode int) (Device, error) {
	control, err := os.OpenFile(controlPath, os.O_RDWR, 0)
	if err != nil {
		return Device{}, fmt.Errorf("open loop control: %w", err)
	}
	defer func() { _ = control.Close() }()
	number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return Device{}, fmt.Errorf("get free loop device: %w", err)
	}
	node, err := os.OpenFile(nodePath(number), mode, 0)
	if err != nil {
		return Device{}, fmt.Errorf("open loop device: %w", err)
	}
	defer func() { _ = node.Close() }()
	if err := unix.IoctlLoopConfigure(int(node.Fd()), config); err != nil {
		return Device{}, fmt.Errorf("configure %s: %w", node.Name(), err)
	}
	device, err := ready(node, mode)
	if err != nil {
		return Device{}, errors.Join(err, unix.IoctlSetInt(int(node.Fd()), unix.LOOP_CLR_FD, 0))
	}
	return device, nil
}

// ready describes a device that was just configured. A user before us may have
// left it marked read-only (blockdev --setro), which outlives detaching.
func ready(node *os.File, mode int) (Device, error) {
	if mode == os.O_RDWR {
		if err := unix.IoctlSetPointerInt(int(node.Fd()), unix.BLKROSET, 0); err != nil {
			return Device{}, fmt.Errorf("make %s writable: %w", node.Name(), err)
		}
	}
	return status(node)
}

// Find returns the device that is attached to the file at path in the given
// mode, if there is one.
func Find(path string, readOnly bool) (Device, bool, error) {
	devices, err := Of(path)
	if err != nil {
		return Device{}, false, err
	}
	for _, device := range devices {
		if device.ReadOnly == readOnly {
			return device, true, nil
		}
	}
	return Device{}, false, nil
}

// Of returns the devices that are attached to the file at path.
func Of(path string) ([]Device, error) {
	var file unix.Stat_t
	if err := unix.Stat(path, &file); err != nil {
		return nil, fmt.Errorf("stat backing file %s: %w", path, err)
	}
	return selectDevices(func(d Device) bool { return d.fileDev == file.Dev && d.fileIno == file.Ino })
}

// On returns the devices that are stacked on the block device with the given
// number: attached to it directly, or to a file of the filesystem that it holds.
func On(number uint64) ([]Device, error) {
	return selectDevices(func(d Device) bool { return d.backing == number })
}

// selectDevices returns the attached devices for which keep answers true.
func selectDevices(keep func(Device) bool) ([]Device, error) {
	attached, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	var selected []Device
	for _, dir := range attached {
		name := filepath.Base(filepath.Dir(dir))
		number, err := strconv.Atoi(strings.TrimPrefix(name, "loop"))
		if err != nil {
			continue
		}
		device, err := describe(nodePath(number))
		if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) {
			continue // detached since the listing
		}
		if err != nil {
			return nil, err
		}
		if keep(device) {
			selected = append(selected, device)
		}
	}
	return selected, nil
}

// describe tells what the device behind a node is attached to.
func describe(path string) (Device, error) {
	node, err := os.Open(path)
	if err != nil {
		return Device{}, fmt.Errorf("open loop device: %w", err)
	}
	defer func() { _ = node.Close() }()
	return status(node)
}

// status describes an open loop device; it fails with ENXIO when nothing is attached.
func status(node *os.File) (Device, error) {
	info, err := unix.IoctlLoopGetStatus64(int(node.Fd()))
	if err != nil {
		return Device{}, fmt.Errorf("get status of %s: %w", node.Name(), err)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(node.Fd()), &stat); err != nil {
		return Device{}, fmt.Errorf("stat %s: %w", node.Name(), err)
	}
	backing := info.Rdevice // set when the file is a block device
	if backing == 0 {
		backing = info.Device
	}
	return Device{
		Path:     node.Name(),
		Number:   stat.Rdev,
		ReadOnly: info.Flags&unix.LO_FLAGS_READ_ONLY != 0,
		backing:  backing,
		fileDev:  info.Device,
		fileIno:  info.Inode,
	}, nil
}

// While calls use if the device is still attached to its file, and does nothing
// if it is not. Meanwhile the device stays attached: the number of a device that
// is detached goes to the next one who asks, which may be another process.
func (d Device) While(use func() error) error {
	return d.open(func(*os.File) error { return use() })
}

// Reload makes the device as large as its backing file is now.
func (d Device) Reload() error {
	return d.ioctl("reload capacity of", unix.LOOP_SET_CAPACITY)
}

// Detach takes the device off its file. When others still hold it open, the
// kernel does so at their last close; see AwaitDetached.
func (d Device) Detach() error {
	return d.ioctl("detach", unix.LOOP_CLR_FD)
}

// AwaitDetached waits until a device on which Detach was called is off its file.
// Every process that lists loop devices opens each for a moment.
func (d Device) AwaitDetached(timeout time.Duration) error {
	// Not by opening it, which would keep it.
	marked := "/sys/block/" + d.Name() + "/loop/autoclear"
	for deadline := time.Now().Add(timeout); ; time.Sleep(time.Millisecond) {
		flag, _ := os.ReadFile(marked) // nothing is attached when there is no such file
		if !strings.HasPrefix(string(flag), "1") {
			return nil // detached, or attached to another file since
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("detach %s: still in use after %s", d.Path, timeout)
		}
	}
}

// Sync writes the device's cache to its backing file and that to its storage.
func (d Device) Sync() error {
	return d.open(func(node *os.File) error {
		if err := node.Sync(); err != nil {
			return fmt.Errorf("sync loop device: %w", err)
		}
		return nil
	})
}

// SetWriteThrough says whether the device ignores requests to flush its cache.
// The setting outlives detaching, so it has to be taken back before; see While.
func (d Device) SetWriteThrough(ignoreFlushes bool) error {
	mode := "write back"
	if ignoreFlushes {
		mode = "write through"
	}
	path := "/sys/block/" + d.Name() + "/queue/write_cache"
	if err := os.WriteFile(path, []byte(mode), 0); err != nil {
		return fmt.Errorf("set cache of loop device: %w", err)
	}
	return nil
}

// Name is the device's name without a directory, such as loop7.
func (d Device) Name() string {
	return filepath.Base(d.Path)
}

func (d Device) ioctl(verb string, request uint) error {
	return d.open(func(node *os.File) error {
		if err := unix.IoctlSetInt(int(node.Fd()), request, 0); err != nil {
			return fmt.Errorf("%s %s: %w", verb, d.Path, err)
		}
		return nil
	})
}

// open calls use with the open device if it is still attached to its file. An
// open device is not detached by anyone, only marked to be.
func (d Device) open(use func(node *os.File) error) error {
	node, err := os.Open(d.Path)
	if err != nil {
		return fmt.Errorf("open loop device: %w", err)
	}
	defer func() { _ = node.Close() }()
	now, err := status(node)
	if errors.Is(err, unix.ENXIO) || err == nil && now != d {
		return nil
	}
	if err != nil {
		return err
	}
	return use(node)
}

func nodePath(number int) string {
	return fmt.Sprintf("/dev/loop%d", number)
}
