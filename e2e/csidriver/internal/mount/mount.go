// Package mount mounts, unmounts, freezes and lists mounted filesystems.
//
// It sees the mount namespace of the calling process only.
package mount

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// fifreeze and fithaw are _IOWR('X', 119, int) and _IOWR('X', 120, int) of linux/fs.h.
	fifreeze = 0xc0045877
	fithaw   = 0xc0045878
)

// Point is one line of the mount table.
type Point struct {
	// Target is where it is mounted.
	Target string
	// Root is the directory or file of the filesystem that is mounted.
	Root string
	// Type is the type of the filesystem.
	Type string
	// Device is the number of the filesystem's device.
	Device uint64
}

// List returns the mount table, in the order of mounting.
func List() ([]Point, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	var points []Point
	for line := range strings.Lines(string(table)) {
		point, err := parse(line)
		if err != nil {
			return nil, fmt.Errorf("parse mount table: %w", err)
		}
		points = append(points, point)
	}
	return points, nil
}

// parse reads one line of mountinfo, for example
// "36 35 98:0 /root /target rw,noatime master:1 - ext4 /dev/sda rw"; see proc_pid_mountinfo(5).
func parse(line string) (Point, error) {
	before, after, found := strings.Cut(line, " - ")
	fields, types := strings.Fields(before), strings.Fields(after)
	if !found || len(fields) < 6 || len(types) < 1 {
		return Point{}, fmt.Errorf("unexpected line %q", line)
	}
	majorText, minorText, _ := strings.Cut(fields[2], ":")
	major, err := strconv.ParseUint(majorText, 10, 32)
	if err != nil {
		return Point{}, fmt.Errorf("unexpected device in %q: %w", line, err)
	}
	minor, err := strconv.ParseUint(minorText, 10, 32)
	if err != nil {
		return Point{}, fmt.Errorf("unexpected device in %q: %w", line, err)
	}
	return Point{
		Root:   unescape(fields[3]),
		Target: unescape(fields[4]),
		Type:   types[0],
		Device: unix.Mkdev(uint32(major), uint32(minor)),
	}, nil
}

// unescape undoes the octal escapes that the kernel writes for blanks and backslashes.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

// At returns what is mounted at target last, if anything is.
func At(target string) (Point, bool, error) {
	points, err := List()
	if err != nil {
		return Point{}, false, err
	}
	for i := len(points) - 1; i >= 0; i-- {
		if points[i].Target == target {
			return points[i], true, nil
		}
	}
	return Point{}, false, nil
}

// Of returns where the filesystem with the given device number is mounted.
func Of(device uint64) ([]Point, error) {
	points, err := List()
	if err != nil {
		return nil, err
	}
	var mounted []Point
	for _, point := range points {
		if point.Device == device {
			mounted = append(mounted, point)
		}
	}
	return mounted, nil
}

// Mount mounts a block device.
func Mount(device, target, fsType string, flags uintptr, options string) error {
	if err := unix.Mount(device, target, fsType, flags, options); err != nil {
		return fmt.Errorf("mount %s on %s as %s: %w", device, target, fsType, err)
	}
	return nil
}

// Bind makes source visible at target too, read-only when asked for.
func Bind(source, target string, readOnly bool) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s on %s: %w", source, target, err)
	}
	if !readOnly {
		return nil
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return errors.Join(fmt.Errorf("make %s read-only: %w", target, err), Unmount(target))
	}
	return nil
}

// Unmount takes away whatever is mounted at target. Nothing mounted, or no such
// path, is no error.
func Unmount(target string) error {
	for {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
}

// Detach takes the mount at target out of the tree at once, also when it is
// still in use.
func Detach(target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("detach mount %s: %w", target, err)
	}
	return nil
}

// Freeze writes out the filesystem mounted at target and makes every further
// write to it wait until the returned function is called. A filesystem that
// someone else has frozen is left to them: thaw leaves it frozen then.
func Freeze(target string) (thaw func() error, err error) {
	directory, err := os.Open(target)
	if err != nil {
		return nil, fmt.Errorf("open mount point: %w", err)
	}
	err = unix.IoctlSetInt(int(directory.Fd()), fifreeze, 0)
	if errors.Is(err, unix.EBUSY) {
		return directory.Close, nil
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("freeze %s: %w", target, err), directory.Close())
	}
	return func() error {
		defer func() { _ = directory.Close() }()
		if err := unix.IoctlSetInt(int(directory.Fd()), fithaw, 0); err != nil {
			return fmt.Errorf("thaw %s: %w", target, err)
		}
		return nil
	}, nil
}

// Thaw ends a freeze that a killed process left behind; no freeze is no error.
func Thaw(target string) error {
	directory, err := os.Open(target)
	if err != nil {
		return fmt.Errorf("open mount point: %w", err)
	}
	defer func() { _ = directory.Close() }()
	err = unix.IoctlSetInt(int(directory.Fd()), fithaw, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("thaw %s: %w", target, err)
	}
	return nil
}
