package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/qcow2"
	"github.com/blockmover/blockmover/internal/task"
)

// openDiskFile opens the qcow2 file of a disk in a directory that KubeVirt has written, and
// checks all of it. The owner of the VM could write there: nothing in it is followed that leads
// elsewhere.
func openDiskFile(ctx context.Context, directory string, f task.DiskFile) (*qcow2.Stack, error) {
	stack, err := openStack(ctx, directory, f)
	if errors.Is(err, qcow2.ErrMalformed) || errors.Is(err, qcow2.ErrUnsupported) {
		err = fault.Mark(err)
	}
	if err != nil {
		return nil, fmt.Errorf("open disk %s of VM %s: %w", f.Volume, f.Instance, err)
	}
	return stack, nil
}

func openStack(ctx context.Context, directory string, f task.DiskFile) (*qcow2.Stack, error) {
	path, err := findDiskFile(directory, f)
	if err != nil {
		return nil, err
	}
	file, err := device.Open(path)
	if err != nil {
		return nil, err
	}
	return qcow2.OpenStack(ctx, cbt.ChangeID(f.Since), file)
}

// findDiskFile returns the path of the only file that has the name. Neither it nor a directory on
// the way is a symbolic link.
func findDiskFile(directory string, f task.DiskFile) (string, error) {
	name := f.Backup + "-" + f.Volume + ".qcow2"
	for _, part := range []string{f.Instance, name} {
		if part != filepath.Base(part) || part == ".." {
			return "", fault.Mark(fmt.Errorf("%q is not the name of a file", part))
		}
	}
	instance, err := os.Lstat(filepath.Join(directory, f.Instance))
	if err != nil {
		return "", missing(err)
	}
	if !instance.IsDir() {
		return "", fault.Mark(fmt.Errorf("%s is not a directory, but %s", f.Instance, instance.Mode().Type()))
	}
	entries, err := os.ReadDir(filepath.Join(directory, f.Instance))
	if err != nil {
		return "", err
	}
	var found []string
	for _, entry := range entries {
		if !entry.IsDir() || !strings.HasPrefix(entry.Name(), f.Backup+"-") {
			continue
		}
		path := filepath.Join(directory, f.Instance, entry.Name(), name)
		switch info, err := os.Lstat(path); {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return "", err
		case !info.Mode().IsRegular():
			return "", fault.Mark(fmt.Errorf("%s is not a regular file, but %s", filepath.Join(entry.Name(), name), info.Mode().Type()))
		default:
			found = append(found, path)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", fault.Mark(fmt.Errorf("KubeVirt has not written %s-*/%s", f.Backup, name))
	default:
		return "", fault.Mark(fmt.Errorf("there are %d files %s-*/%s, want one", len(found), f.Backup, name))
	}
}

// missing makes the error of a file that does not exist one that stays.
func missing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fault.Mark(fmt.Errorf("KubeVirt has not written it: %w", err))
	}
	return err
}

// diskImage is the name that KubeVirt gives to the file of a disk in a Filesystem volume.
const diskImage = "disk.img"

// openDiskImage opens the file of a disk in a directory, and makes it as large as the image. An
// earlier attempt may have written to it.
func openDiskImage(directory string, size int64) (device.Writer, error) {
	return device.CreateWriter(filepath.Join(directory, diskImage), size)
}
