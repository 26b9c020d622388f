package main

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/blake2b"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/device"
)

// stepTimeout bounds each step. The slowest is an incremental backup of 4 KiB
// writes by a tool that stores whole chunks: seconds for each GiB.
const stepTimeout = 15 * time.Minute

// sample is one measurement. Sizes are bytes.
type sample struct {
	Seconds    float64 `json:"seconds"`
	CPUSeconds float64 `json:"cpuSeconds"`
	PeakRSS    int64   `json:"peakRSS,omitempty"`
	// Work is the unit of the throughput.
	Work int64 `json:"work,omitempty"`
	// Grew is the growth of the files of the repository.
	Grew int64 `json:"repositoryGrew,omitempty"`
	// Changed is what was written to the volume before an incremental backup.
	Changed int64 `json:"changed,omitempty"`
	// Uploaded and Metadata are what the tool reports.
	Uploaded int64 `json:"uploaded,omitempty"`
	Metadata int64 `json:"metadata,omitempty"`
}

// child is a process to measure.
type child struct {
	args  []string
	env   []string
	stdin string
}

// run runs a child and returns its output. When ctx ends, the child is told to stop, and
// killed if it does not.
func (c child) run(ctx context.Context) (sample, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = append(os.Environ(), c.env...)
	if c.stdin != "" {
		f, err := os.Open(c.stdin)
		if err != nil {
			return sample{}, nil, err
		}
		defer f.Close() //nolint:errcheck // it was only read
		cmd.Stdin = f
	}
	var out, messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &messages
	start := time.Now()
	err := cmd.Run()
	s := sample{Seconds: time.Since(start).Seconds()}
	if err != nil {
		text := strings.TrimSpace(messages.String())
		return s, nil, fmt.Errorf("%s: %w: %s", strings.Join(c.args, " "), err, text[max(0, len(text)-500):])
	}
	if r, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		s.CPUSeconds = time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds()
		s.PeakRSS = r.Maxrss << 10
	}
	return s, out.Bytes(), nil
}

// measured runs work of this process, whose CPU time is counted in all threads.
func measured(work func() error) (sample, error) {
	before, start := ownCPU(), time.Now()
	err := work()
	return sample{Seconds: time.Since(start).Seconds(), CPUSeconds: ownCPU() - before}, err
}

func ownCPU() float64 {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds()
}

// rawAccess reads or writes all of a device in pieces of 1 MiB, not through the cache, like
// dd.
func rawAccess(ctx context.Context, path string, size int64, write bool) (sample, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	f, err := os.OpenFile(path, flag|unix.O_DIRECT, 0)
	if err != nil {
		return sample{}, err
	}
	defer f.Close() //nolint:errcheck // it is synced before
	buf := device.NewBuffer(mib)
	newRandom(1).fill(buf)
	s, err := measured(func() error {
		for off := int64(0); off < size; off += mib {
			if err := ctx.Err(); err != nil {
				return err
			}
			access := f.ReadAt
			if write {
				access = f.WriteAt
			}
			if _, err := access(buf, off); err != nil {
				return err
			}
		}
		return f.Sync()
	})
	s.Work = size
	return s, err
}

// cryptoAlone hashes and encrypts so many bytes on all cores, with kopia's algorithms of the
// repositories, and does nothing else.
func cryptoAlone(ctx context.Context, size int64) (sample, error) {
	return transform(ctx, size, func(int64, []byte) error { return nil }, func(int, []byte) error { return nil })
}

// bareBackup only does the bulk work of a backup: it reads the extents, not through the
// cache, hashes and encrypts, and writes files of the size of a pack.
func bareBackup(ctx context.Context, path string, extents []block.Extent, dir string) (sample, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return sample{}, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	if err := os.Mkdir(dir, 0o700); err != nil {
		return sample{}, err
	}
	var offsets []int64
	for _, e := range extents {
		for off := e.Offset; off < e.End(); off += mib {
			offsets = append(offsets, off)
		}
	}
	read := func(n int64, buf []byte) error {
		_, err := f.ReadAt(buf, offsets[n])
		return err
	}
	const packSize = 20 * mib
	packs := make([]pack, runtime.NumCPU())
	write := func(worker int, data []byte) error {
		p := &packs[worker]
		if p.file == nil {
			var err error
			if p.file, err = os.CreateTemp(dir, "pack-"); err != nil {
				return err
			}
		}
		n, err := p.file.Write(data)
		if p.length += n; err == nil && p.length >= packSize {
			err = p.file.Close()
			*p = pack{}
		}
		return err
	}
	s, err := transform(ctx, int64(len(offsets))*mib, read, write)
	for _, p := range packs {
		if p.file != nil {
			err = errors.Join(err, p.file.Close())
		}
	}
	return s, errors.Join(err, os.RemoveAll(dir))
}

// pack is a file that is being written.
type pack struct {
	file   *os.File
	length int
}

// transform hashes and encrypts so many bytes on all cores, one MiB at a time. read fills the
// buffer with the MiB of that number. write gets the result and the number of the core.
func transform(ctx context.Context, size int64, read func(n int64, buf []byte) error, write func(worker int, data []byte) error) (sample, error) {
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	s, err := measured(func() error {
		for worker := range runtime.NumCPU() {
			group.Go(func() error {
				seal, err := newSealer()
				if err != nil {
					return err
				}
				data := device.NewBuffer(mib)
				newRandom(uint64(worker)).fill(data)
				for n := next.Add(1) - 1; n < size/mib; n = next.Add(1) - 1 {
					if err := ctx.Err(); err != nil {
						return err
					}
					if err := read(n, data); err != nil {
						return err
					}
					if err := write(worker, seal.seal(data)); err != nil {
						return err
					}
				}
				return nil
			})
		}
		return group.Wait()
	})
	s.Work = size
	return s, err
}

// sealer hashes and encrypts as the repositories do.
type sealer struct {
	hash  hash.Hash
	aead  cipher.AEAD
	nonce []byte
	out   []byte
}

func newSealer() (*sealer, error) {
	key := make([]byte, 32)
	hash, err := blake2b.New256(key)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &sealer{hash, aead, make([]byte, aead.NonceSize()), make([]byte, 0, mib+aead.Overhead())}, nil
}

// seal returns a buffer that the next call writes to.
func (s *sealer) seal(data []byte) []byte {
	s.hash.Reset()
	s.hash.Write(data)
	copy(s.nonce, s.hash.Sum(nil))
	s.out = s.aead.Seal(s.out[:0], s.nonce, data, nil)
	return s.out
}

// diskUsage returns the size of all files in a directory.
func diskUsage(dir string) (int64, error) {
	var n int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	return n, err
}

// bitmapBenchmark puts 262,144 isolated ranges of 64 KiB on 1 TiB into a bitmap.
func bitmapBenchmark() (sample, error) {
	const ranges = 1 << 18
	return measured(func() error {
		b, err := block.NewBitmap(tib, block.PageSize(tib))
		if err != nil {
			return err
		}
		for i := range int64(ranges) {
			if err := b.Set(block.Extent{Offset: i * (tib / ranges), Length: 64 * kib}); err != nil {
				return err
			}
		}
		return nil
	})
}
