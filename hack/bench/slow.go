package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/device"
)

// latencies are those of the devices: a local one, a fast and a slow one in a network.
var latencies = []time.Duration{0, time.Millisecond, 5 * time.Millisecond}

const (
	// slowWrites is how many places an increment changes, and slowDepth how many the bare device reads at once.
	slowWrites = 8000
	slowDepth  = 32
)

// slowDisk is a file whose reads and writes take a while each, however many there are at once: a FUSE file system with the
// file "disk".
type slowDisk struct {
	fs.Inode
	server  *fuse.Server
	backing *os.File
	size    int64
	latency time.Duration
}

// mountSlow shows a file as a slow one below a directory.
func mountSlow(dir, file string, latency time.Duration) (*slowDisk, error) {
	backing, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	info, err := backing.Stat()
	if err != nil {
		return nil, errors.Join(err, backing.Close())
	}
	d := &slowDisk{backing: backing, size: info.Size(), latency: latency}
	root := &fs.Inode{}
	d.server, err = fs.Mount(dir, root, &fs.Options{
		OnAdd: func(ctx context.Context) {
			root.AddChild("disk", root.NewPersistentInode(ctx, d, fs.StableAttr{Mode: fuse.S_IFREG}), false)
		},
		MountOptions: fuse.MountOptions{FsName: "slow", Name: "bench", DirectMountStrict: true, MaxWrite: mib},
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount slow device: %w", err), backing.Close())
	}
	return d, nil
}

func (d *slowDisk) close() error { return errors.Join(d.server.Unmount(), d.backing.Close()) }

// Open implements fs.NodeOpener. Nothing is cached, and writes need not wait for each other.
func (*slowDisk) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES, fs.OK
}

// Getattr implements fs.NodeGetattrer.
func (d *slowDisk) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = fuse.S_IFREG|0o600, uint64(d.size)
	return fs.OK
}

// Read implements fs.NodeReader.
func (d *slowDisk) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	time.Sleep(d.latency)
	n, err := unix.Pread(int(d.backing.Fd()), p, off)
	return fuse.ReadResultData(p[:max(n, 0)]), fs.ToErrno(err)
}

// Write implements fs.NodeWriter.
func (d *slowDisk) Write(_ context.Context, _ fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	time.Sleep(d.latency)
	n, err := unix.Pwrite(int(d.backing.Fd()), p, off)
	return uint32(max(n, 0)), fs.ToErrno(err)
}

// Allocate implements fs.NodeAllocater. What is discarded takes no time: FUSE lets one call wait for the other.
func (d *slowDisk) Allocate(_ context.Context, _ fs.FileHandle, off, length uint64, mode uint32) syscall.Errno {
	return fs.ToErrno(unix.Fallocate(int(d.backing.Fd()), mode, int64(off), int64(length)))
}

// Fsync implements fs.NodeFsyncer.
func (*slowDisk) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return fs.OK }

// The steps of slowRound.
const (
	slowFull, slowRestore = "full", "restore"
	bare, byKopia         = ", bare", ", kopia"
)

// slowLengths are those of the places that increments change.
var slowLengths = []int64{64 * kib, 4 * kib}

func slowStep(latency time.Duration, step string) string {
	return fmt.Sprintf("%s a read: %s", latency, step)
}

func slowIncrement(length int64) string {
	return fmt.Sprintf("%d x %s", slowWrites, formatBytes(length))
}

// concludeSlow compares with what the bare device takes.
func (r *report) concludeSlow() {
	for _, latency := range latencies {
		compare := func(step string) float64 {
			return divide(r.step(slowStep(latency, step)).Median.Seconds, r.step(slowStep(latency, step+bare)).Median.Seconds)
		}
		r.note(slowStep(latency, slowFull)+", ours / bare", compare(slowFull))
		for _, length := range slowLengths {
			step := slowIncrement(length)
			r.note(slowStep(latency, step)+", ours / bare", compare(step))
		}
	}
}

// slowFile shows a file as a slow one, and returns its path.
func (b *bench) slowFile(name, file string, latency time.Duration) (path string, closeIt func() error, err error) {
	dir := b.path(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	d, err := mountSlow(dir, file, latency)
	if err != nil {
		return "", nil, err
	}
	return filepath.Join(dir, "disk"), d.close, nil
}

// slowRound measures devices of one latency, once: what the bare device takes with slowDepth reads at once, and what we do.
func (b *bench) slowRound(ctx context.Context, latency time.Duration, seed uint64) (err error) {
	allocated, err := b.fill(ctx, seed)
	if err != nil {
		return err
	}
	o := ours{binary: b.binary, repo: b.path("ours")}
	if err := o.create(ctx); err != nil {
		return err
	}
	source, closeSource, err := b.slowFile("slow-source", b.volume.file, latency)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeSource()) }()
	target, closeTarget, err := b.slowFile("slow-target", b.target.file, latency)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeTarget()) }()
	add := func(step string, s sample, err error) error {
		b.report.add(slowStep(latency, step), s)
		return err
	}
	// besideBare backs up, and before that reads the same extents in pieces without doing anything with them.
	besideBare := func(step string, extents []block.Extent, piece int64, kind string, args ...string) (backup, error) {
		s, err := readAtDepth(ctx, source, extents, piece)
		if err := add(step+bare, s, err); err != nil {
			return backup{}, err
		}
		s, image, err := o.backup(ctx, source, kind, args...)
		return image, add(step, s, err)
	}
	if _, err := besideBare(slowFull, allocated, mib, "Full", "--allocated", b.path("allocated")); err != nil {
		return err
	}
	k := stock{b.kopia, b.path("kopia")}
	if err := k.create(ctx); err != nil {
		return err
	}
	s, _, err := k.snapshot(ctx, source, "", total(allocated))
	if err := errors.Join(add(slowFull+byKopia, s, err), os.RemoveAll(k.dir)); err != nil {
		return err
	}
	var last backup
	for i, length := range slowLengths {
		places := scattered(rand.New(rand.NewPCG(seed, uint64(i))), b.size/length, slowWrites)
		changed, err := change(b.volume.path(), places, length, seed+uint64(i)+1000)
		if err := errors.Join(err, b.volume.forget(), writeList(b.path("changed"), changed)); err != nil {
			return err
		}
		if last, err = besideBare(slowIncrement(length), changed, length, "Incremental", "--changed", b.path("changed")); err != nil {
			return err
		}
	}
	s, _, err = o.child("image", "restore", "--snapshot", last.SnapshotID, "--device", target).run(ctx)
	if err := add(slowRestore, s, err); err != nil {
		return err
	}
	if err := sameBytes(ctx, b.volume.file, b.target.file, b.size); err != nil {
		return fmt.Errorf("check restore: %w", err)
	}
	return errors.Join(b.clear(), os.RemoveAll(o.repo))
}

// readAtDepth reads extents in pieces, slowDepth at once, and does nothing with them.
func readAtDepth(ctx context.Context, path string, extents []block.Extent, length int64) (sample, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return sample{}, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	return measured(func() error {
		group, ctx := errgroup.WithContext(ctx)
		places := make(chan block.Extent)
		group.Go(func() error {
			defer close(places)
			for _, e := range extents {
				for off := e.Offset; off < e.End(); off += length {
					select {
					case places <- block.Extent{Offset: off, Length: min(length, e.End()-off)}:
					case <-ctx.Done():
						return ctx.Err()
					}
				}
			}
			return nil
		})
		for range slowDepth {
			group.Go(func() error {
				buf := device.NewBuffer(int(length))
				for e := range places {
					if _, err := f.ReadAt(buf[:e.Length], e.Offset); err != nil {
						return err
					}
				}
				return nil
			})
		}
		return group.Wait()
	})
}

// slow measures devices with a latency.
func (b *bench) slow(ctx context.Context, runs int) error {
	for _, latency := range latencies {
		for run := range runs {
			b.say("%s a read, run %d of %d", latency, run+1, runs)
			if err := b.slowRound(ctx, latency, uint64(run)); err != nil {
				return err
			}
		}
	}
	return nil
}
