package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// loop is an attached loop device, and where its data comes from.
type loop struct {
	number      int
	backingPath string // as the kernel prints it: unreliable across mount namespaces
	dev, ino    uint64 // of the backing file: its file system's device and its inode
}

// loopMajor is the block major number of loop devices (Documentation/admin-guide/devices.txt).
const loopMajor = 7

// ownedLoops returns the loop devices that belong to the state directory, in an order in
// which each comes before the device that it lies on:
//
//   - backed by a file below the state directory;
//   - backed by a file on a file system on an owned loop device (the volumes of the CSI
//     driver; st_dev of an XFS is its block device);
//   - backed by the device node of an owned loop device (the kubelet maps Block volumes
//     through a loop device of its own; its path prints as "/").
//
// nodes maps dev and inode of device nodes to loop numbers. Loop devices of others are never
// returned.
func ownedLoops(all []loop, state string, nodes map[[2]uint64]int) []loop {
	owned := map[int]int{} // number to depth
	for changed := true; changed; {
		changed = false
		for _, l := range all {
			if _, ok := owned[l.number]; ok {
				continue
			}
			depth := -1
			if strings.HasPrefix(l.backingPath, state+"/") {
				depth = 0
			} else if base, ok := nodes[[2]uint64{l.dev, l.ino}]; ok {
				if d, ok := owned[base]; ok {
					depth = d + 1
				}
			}
			if d, ok := owned[int(unix.Minor(l.dev))]; ok && unix.Major(l.dev) == loopMajor && depth < d+1 {
				depth = d + 1
			}
			if depth >= 0 {
				owned[l.number], changed = depth, true
			}
		}
	}
	var picked []loop
	for depth := len(all); depth >= 0; depth-- {
		for _, l := range all {
			if d, ok := owned[l.number]; ok && d == depth {
				picked = append(picked, l)
			}
		}
	}
	return picked
}

// listLoops reads all attached loop devices.
func listLoops() (all []loop, nodes map[[2]uint64]int, err error) {
	dirs, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, nil, err
	}
	nodes = map[[2]uint64]int{}
	for _, file := range dirs {
		l, node, err := readLoop(file)
		if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) {
			continue // detached meanwhile
		}
		if err != nil {
			return nil, nil, err
		}
		nodes[node] = l.number
		all = append(all, l)
	}
	return all, nodes, nil
}

// readLoop reads one device. backingFile is its attribute in /sys. It also returns the dev
// and inode of the device node.
func readLoop(backingFile string) (l loop, node [2]uint64, err error) {
	name := strings.Split(backingFile, "/")[3]
	if l.number, err = strconv.Atoi(strings.TrimPrefix(name, "loop")); err != nil {
		return l, node, err
	}
	path, err := os.ReadFile(backingFile)
	if err != nil {
		return l, node, err
	}
	device, err := os.Open("/dev/" + name)
	if err != nil {
		return l, node, err
	}
	defer func() { _ = device.Close() }() // read only
	info, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
	if err != nil {
		return l, node, fmt.Errorf("status of /dev/%s: %w", name, err)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(device.Fd()), &stat); err != nil {
		return l, node, fmt.Errorf("stat /dev/%s: %w", name, err)
	}
	l.backingPath, l.dev, l.ino = strings.TrimSpace(string(path)), info.Device, info.Inode
	return l, [2]uint64{stat.Dev, stat.Ino}, nil
}

// detachLoops detaches the loop devices of the state directory, those on top first, until
// none is left. Detaching is asynchronous while a mount goes away.
func detachLoops(state string, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		all, nodes, err := listLoops()
		if err != nil {
			return err
		}
		owned := ownedLoops(all, state, nodes)
		if len(owned) == 0 {
			return nil
		}
		var last error
		for _, l := range owned {
			if err := detach(l); err != nil {
				last = err
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d loop devices are still attached after %s, first /dev/loop%d on %s: %w",
				len(owned), limit, owned[0].number, owned[0].backingPath, last)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// detach leaves a device alone that was made under the same number since the list.
func detach(l loop) error {
	device, err := os.Open(fmt.Sprintf("/dev/loop%d", l.number))
	if err != nil {
		return err
	}
	defer func() { _ = device.Close() }()
	info, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
	switch {
	case errors.Is(err, unix.ENXIO):
		return nil
	case err != nil:
		return fmt.Errorf("status of /dev/loop%d: %w", l.number, err)
	case info.Device != l.dev || info.Inode != l.ino:
		return nil
	}
	if _, err := unix.IoctlRetInt(int(device.Fd()), unix.LOOP_CLR_FD); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detach /dev/loop%d: %w", l.number, err)
	}
	return nil
}
