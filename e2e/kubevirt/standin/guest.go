package standin

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Address is that of a disk of a VM that runs, for the tools of QEMU.
func (s *Standin) Address(namespace, vm, disk string) (string, error) {
	_, socket, err := s.Machine(namespace, vm)
	return fmt.Sprintf("nbd+unix:///%s?socket=%s", disk, socket), err
}

// Fill writes random bytes to a disk of a VM that runs, as its guest does.
func (s *Standin) Fill(ctx context.Context, namespace, vm, disk string, offset, length int64) (err error) {
	address, err := s.Address(namespace, vm, disk)
	if err != nil {
		return err
	}
	file, err := s.scratch(io.LimitReader(rand.Reader, length))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(file)) }()
	return tool(ctx, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -q -s %s %d %d", file, offset, length), "-c", "flush", address)
}

// Sum is that of all bytes of a disk of a VM that runs.
func (s *Standin) Sum(ctx context.Context, namespace, vm, disk string, sum hash.Hash) (_ string, err error) {
	address, err := s.Address(namespace, vm, disk)
	if err != nil {
		return "", err
	}
	file, err := s.scratch(strings.NewReader(""))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.Remove(file)) }()
	if err := tool(ctx, "qemu-img", "convert", "-f", "raw", "-O", "raw", address, file); err != nil {
		return "", err
	}
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = io.Copy(sum, f)
	return hex.EncodeToString(sum.Sum(nil)), err
}

// scratch writes a file.
func (s *Standin) scratch(content io.Reader) (string, error) {
	f, err := os.CreateTemp(s.Directory, "scratch-")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, content)
	return filepath.Clean(f.Name()), errors.Join(err, f.Close())
}

// tool runs one of QEMU's tools.
func tool(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
