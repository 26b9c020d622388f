// Command benchvm measures two ways to keep the incremental backups that KubeVirt writes of a disk,
// in one run: `make bench-vm` runs it.
//
//	files  the qcow2 files are stored as they are. A restore fetches the chain into scratch
//	       space, and qemu-img makes a disk of it
//	images blockmover folds each file into an image. A restore reads the last one
//
// The disk is a third random bytes, a third text and a third nothing. Each increment is 1 % of it, in
// pieces of 64 KiB. The restored disks are compared with qemu-img, with the disk as QEMU sees it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// piece is the unit of increments, the cluster size of KubeVirt's files.
const piece = 64 << 10

func main() {
	var (
		size       = flag.String("size", "4Gi", "size of the disk")
		increments = flag.Int("increments", 10, "how many increments follow the full backup")
		dir        = flag.String("dir", os.TempDir(), "directory for everything, several times the size of the disk")
	)
	flag.Parse()
	if err := run(context.Background(), *size, *increments, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "benchvm:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	dir  string
	size int64
	// files are the qcow2 files, the full one first.
	files []string
}

func run(ctx context.Context, size string, increments int, dir string) (err error) {
	quantity, err := resource.ParseQuantity(size)
	if err != nil || quantity.Value() <= 0 || quantity.Value()%(1<<20) != 0 {
		return fmt.Errorf("size of the disk is %q, want whole MiB such as 4Gi", size)
	}
	work, err := os.MkdirTemp(dir, "benchvm-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	b := &bench{dir: work, size: quantity.Value()}
	fmt.Printf("a disk of %s, and %d increments of 1 %%\n", size, increments)
	if err := b.makeDisk(ctx, increments); err != nil {
		return err
	}
	files, err := b.keepFiles(ctx)
	if err != nil {
		return err
	}
	images, err := b.keepImages(ctx)
	if err != nil {
		return err
	}
	for _, way := range []outcome{files, images} {
		fmt.Printf("%-8s %8.1f MiB stored   full restored in %6.1f s, last in %6.1f s   %8.1f MiB of scratch space\n",
			way.name, mib(way.stored), way.full.Seconds(), way.last.Seconds(), mib(way.scratch))
	}
	fmt.Printf("images / files: stored %.2f, restore of the last %.2f\n", float64(images.stored)/float64(files.stored), images.last.Seconds()/files.last.Seconds())
	return nil
}

// outcome is what one way costs.
type outcome struct {
	name            string
	stored, scratch int64
	full, last      time.Duration
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func qemu(ctx context.Context, stdin string, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w: %s", strings.Join(args[:2], " "), err, out)
	}
	return nil
}

// makeDisk makes the files as KubeVirt does: each has what was written since the one before it.
func (b *bench) makeDisk(ctx context.Context, increments int) error {
	raw := b.path("disk.raw")
	if err := b.fill(raw); err != nil {
		return err
	}
	b.files = []string{b.path("full.qcow2")}
	if err := qemu(ctx, "", "qemu-img", "convert", "-O", "qcow2", "-f", "raw", raw, b.files[0]); err != nil {
		return err
	}
	if err := os.Remove(raw); err != nil {
		return err
	}
	const share = 100
	source := rand.New(rand.NewPCG(1, 2))
	pieces := b.size / piece
	for n := range increments {
		file := b.path(fmt.Sprintf("increment-%d.qcow2", n+1))
		if err := qemu(ctx, "", "qemu-img", "create", "-q", "-f", "qcow2", "-b", b.files[n], "-F", "qcow2", file); err != nil {
			return err
		}
		var commands strings.Builder
		for range pieces / share {
			fmt.Fprintf(&commands, "write -q -P %d %d %d\n", 1+source.IntN(255), source.Int64N(pieces)*piece, piece)
		}
		if err := qemu(ctx, commands.String(), "qemu-io", "-t", "unsafe", "-f", "qcow2", file); err != nil {
			return err
		}
		b.files = append(b.files, file)
	}
	return nil
}

// fill writes the content of the disk.
func (b *bench) fill(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{1})
	chunk := make([]byte, 1<<20)
	for i := range b.size >> 20 {
		switch i % 3 {
		case 0:
			_, _ = random.Read(chunk)
		case 1:
			text := chunk[:0]
			for line := 0; len(text) < len(chunk)-80; line++ {
				text = fmt.Appendf(text, "%08d the quick brown fox jumps over the lazy dog %d\n", i*1000+int64(line), random.Uint64()%1000)
			}
		default:
			continue
		}
		if _, err := file.WriteAt(chunk, i<<20); err != nil {
			return errors.Join(err, file.Close())
		}
	}
	return errors.Join(file.Truncate(b.size), file.Close())
}

// keepFiles is the way of the files.
func (b *bench) keepFiles(ctx context.Context) (outcome, error) {
	way := outcome{name: "files"}
	bucket := b.path("bucket")
	if err := os.Mkdir(bucket, 0o700); err != nil {
		return way, err
	}
	for _, file := range b.files {
		if err := copyFile(file, filepath.Join(bucket, filepath.Base(file))); err != nil {
			return way, err
		}
	}
	var err error
	if way.stored, err = usage(bucket); err != nil {
		return way, err
	}
	for _, last := range []int{0, len(b.files) - 1} {
		began := time.Now()
		scratch, err := b.replay(ctx, bucket, last)
		if err != nil {
			return way, err
		}
		way.full, way.last, way.scratch = way.last, time.Since(began), max(way.scratch, scratch)
		if err := b.compare(ctx, last); err != nil {
			return way, err
		}
	}
	return way, os.RemoveAll(bucket)
}

// replay makes the disk of the chain up to a file.
func (b *bench) replay(ctx context.Context, bucket string, last int) (scratch int64, err error) {
	dir := b.path("scratch")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	top := ""
	for _, file := range b.files[:last+1] {
		local := filepath.Join(dir, filepath.Base(file))
		if err := copyFile(filepath.Join(bucket, filepath.Base(file)), local); err != nil {
			return 0, err
		}
		if top != "" {
			if err := qemu(ctx, "", "qemu-img", "rebase", "-u", "-f", "qcow2", "-b", top, "-F", "qcow2", local); err != nil {
				return 0, err
			}
		}
		top = local
	}
	if scratch, err = usage(dir); err != nil {
		return 0, err
	}
	if err := qemu(ctx, "", "qemu-img", "convert", "-f", "qcow2", "-O", "raw", top, b.path("restored")); err != nil {
		return 0, err
	}
	return scratch, os.RemoveAll(dir)
}

// compare compares the restored disk with what QEMU sees in the chain, and removes it.
func (b *bench) compare(ctx context.Context, last int) error {
	if err := qemu(ctx, "", "qemu-img", "compare", "-f", "raw", "-F", "qcow2", b.path("restored"), b.files[last]); err != nil {
		return err
	}
	return os.Remove(b.path("restored"))
}

func copyFile(from, to string) error {
	return exec.Command("cp", "--sparse=always", from, to).Run()
}

// usage is what the files of a directory take.
func usage(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}
