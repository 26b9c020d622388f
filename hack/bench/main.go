// Command bench measures blockmover against stock kopia and against the bare device, in one
// run, on volumes in memory. `make bench` runs it.
//
// The volume is behind a loop device. It is a mix of random bytes, text (the source of Go)
// and nothing, in the proportions of real volumes. In each run it is read and written raw,
// backed up and restored by kopia, and backed up, restored and backed up incrementally by
// blockmover. Every restore is compared with its source. Hot spots are measured once, because
// only the growth of the repository counts.
//
// Compare only numbers of the same run. The load of the machine is in the report.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/blockmover/blockmover/internal/block"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if len(os.Args) == 3 && os.Args[1] == moverCommand {
		err = runMover(ctx, os.Args[2])
	} else {
		err = run(ctx)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run of the program.
type bench struct {
	dir    string
	size   int64
	corpus []byte
	binary string
	kopia  string
	report *report
	start  time.Time
	// links is how many of lines to measure.
	links int

	volume *loopDevice
	target *loopDevice
}

func run(ctx context.Context) error {
	var (
		size   = flag.String("size", "4Gi", "size of the volume, such as 512Mi or 4Gi")
		runs   = flag.Int("runs", 3, "how often to measure")
		binary = flag.String("blockmover", "", "path of blockmover")
		kopia  = flag.String("kopia", "", "path of stock kopia")
		out    = flag.String("out", "bench.json", "file to write the report to")
		text   = flag.String("text", "", "directory of Go files")
		memory = flag.String("memory", "/dev/shm", "directory in memory")
		only   = flag.Bool("limits", false, "measure only peak memory, and what is done again after a kill")
		slow   = flag.Bool("slow", false, "measure only devices with a latency")
		links  = flag.String("link", "", "path of versitygw: measure only what goes over a link to it")
		first  = flag.Int("lines", len(lines), "over how many of the links")
	)
	flag.Parse()
	if *only {
		return limits(ctx, *binary, *memory)
	}
	bytes, err := parseSize(*size)
	switch {
	case err != nil:
		return err
	case *runs < 1 || *runs > 100:
		return fmt.Errorf("%d runs, want 1 to 100", *runs)
	case *kopia == "" || *binary == "" && *links == "":
		return errors.New("--blockmover and --kopia are missing: run make bench")
	}
	corpus, err := readCorpus(*text)
	if err != nil {
		return err
	}
	b := &bench{size: bytes, corpus: corpus, binary: *binary, kopia: *kopia, report: newReport(bytes, *runs), start: time.Now(), links: *first}
	if err := b.prepare(*memory); err != nil {
		return errors.Join(err, b.cleanUp())
	}
	measure, ratios := b.choose(*links, *slow)
	err = errors.Join(measure(ctx, *runs), b.cleanUp())
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if err != nil || *links != "" {
		return err
	}
	b.report.conclude(ratios)
	if err := b.report.print(os.Stdout); err != nil {
		return err
	}
	if err := b.report.write(*out); err != nil {
		return err
	}
	fmt.Printf("\nreport: %s\n", *out)
	return nil
}

// choose returns what is measured, and what is compared then.
func (b *bench) choose(links string, slow bool) (measure func(ctx context.Context, runs int) error, ratios func()) {
	switch {
	case links != "":
		return func(ctx context.Context, runs int) error { return b.linkTables(ctx, links, runs) }, nil
	case slow:
		return b.slow, b.report.concludeSlow
	}
	return b.measure, b.report.concludeMix
}

// minSize has room for all patterns of change.
const minSize = 64 * mib

// parseSize reads a quantity, such as 512Mi or 4Gi.
func parseSize(text string) (int64, error) {
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return 0, fmt.Errorf("read size %q: %w", text, err)
	}
	n := q.Value()
	if q.CmpInt64(n) != 0 || n < minSize || n > tib || n%mib != 0 {
		return 0, fmt.Errorf("size is %q, want whole MiB from 64Mi to 1Ti", text)
	}
	return n, nil
}

// say announces the next step.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "[%5.0fs] %s\n", time.Since(b.start).Seconds(), fmt.Sprintf(format, args...))
}

// The steps of the report.
const (
	stepRawRead      = "raw read"
	stepRawWrite     = "raw write"
	stepCrypto       = "crypto alone"
	stepBare         = "read, crypto, write"
	stepKopiaFile    = "kopia: full, file"
	stepKopiaDevice  = "kopia: full, device"
	stepKopiaRestore = "kopia: restore to file"
	stepStart        = "start-up (image list)"
	stepWhole        = "full, no ranges"
	stepFull         = "full, allocated"
	stepPlain        = "full, not compressed"
	stepZstd         = "full, zstd"
	stepRestore      = "restore"
	stepRestoreHoles = "restore, 90 % zero"
	stepBitmap       = "bitmap"
)

var patterns = []pattern{
	{"1 % clustered", 0, 1.1},
	{"1 % scattered 1 MiB", mib, 0},
	{"1 % scattered 64 KiB", 64 * kib, 0},
	{"1 % scattered 4 KiB", 4 * kib, 0},
}

var hotspots = []hotspot{
	{"hot spot 64 KiB", 64 * kib, 2},
	{"hot spot 4 KiB", 4 * kib, 8},
}

const (
	hotspotSteps = 10
	// hotspotShare is the part of the volume that each step writes, 1 %, as in the
	// patterns.
	hotspotShare = 100
)

var sparseSteps = []sparse{{"sparse 10 TiB", 10 * tib}, {"sparse 64 TiB", 64 * tib}}

func (b *bench) measure(ctx context.Context, runs int) error {
	for run := range runs {
		b.say("run %d of %d", run+1, runs)
		if err := b.round(ctx, uint64(run)); err != nil {
			return err
		}
	}
	for _, h := range hotspots {
		b.say("%s", h.name)
		if err := b.hotspot(ctx, h); err != nil {
			return err
		}
	}
	for run := range runs {
		b.say("%s", stepRestoreHoles)
		if err := b.holes(ctx, uint64(run)); err != nil {
			return err
		}
	}
	for _, s := range sparseSteps {
		b.say("%s", s.name)
		for range runs {
			if err := b.sparse(ctx, s); err != nil {
				return err
			}
		}
	}
	b.say("bitmap")
	for range runs {
		s, err := bitmapBenchmark()
		if err != nil {
			return fmt.Errorf("set bits: %w", err)
		}
		b.report.add(stepBitmap, s)
	}
	return nil
}

// fill makes a new mix on the volume.
func (b *bench) fill(ctx context.Context, seed uint64) ([]block.Extent, error) {
	allocated, err := fillMix(ctx, b.volume.file, b.size, b.corpus, seed)
	if err != nil {
		return nil, fmt.Errorf("fill volume: %w", err)
	}
	if err := writeList(b.path("allocated"), allocated); err != nil {
		return nil, err
	}
	return allocated, b.volume.forget()
}

// clear frees the memory of the target.
func (b *bench) clear() error {
	f, err := os.OpenFile(b.target.file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(punch(f, 0, b.size), f.Close(), b.target.forget())
}

// round measures everything that needs the full mix, once.
func (b *bench) round(ctx context.Context, seed uint64) error {
	allocated, err := b.fill(ctx, seed)
	if err != nil {
		return err
	}
	data := total(allocated)
	if err := b.raw(ctx, allocated); err != nil {
		return err
	}
	if err := b.stock(ctx, data); err != nil {
		return err
	}
	if err := b.hmac(ctx, data); err != nil {
		return err
	}
	o := ours{binary: b.binary, repo: b.path("ours")}
	if err := b.cores(ctx, o); err != nil {
		return err
	}
	if err := b.full(ctx, o); err != nil {
		return err
	}
	for i, p := range patterns {
		if err := b.incremental(ctx, o, p, seed*uint64(len(patterns))+uint64(i)); err != nil {
			return err
		}
	}
	return os.RemoveAll(o.repo)
}

func (b *bench) raw(ctx context.Context, allocated []block.Extent) error {
	s, err := rawAccess(ctx, b.volume.path(), b.size, false)
	if err != nil {
		return fmt.Errorf("read device: %w", err)
	}
	b.report.add(stepRawRead, s)
	if s, err = rawAccess(ctx, b.target.path(), b.size, true); err != nil {
		return fmt.Errorf("write device: %w", err)
	}
	b.report.add(stepRawWrite, s)
	if s, err = cryptoAlone(ctx, total(allocated)); err != nil {
		return fmt.Errorf("hash and encrypt: %w", err)
	}
	b.report.add(stepCrypto, s)
	if err := b.clear(); err != nil {
		return err
	}
	if s, err = bareBackup(ctx, b.volume.path(), allocated, b.path("bare")); err != nil {
		return fmt.Errorf("read, hash, encrypt and write: %w", err)
	}
	b.report.add(stepBare, s)
	return nil
}

func (b *bench) stock(ctx context.Context, data int64) error {
	k := stock{b.kopia, b.path("kopia")}
	if err := k.create(ctx); err != nil {
		return err
	}
	s, id, err := k.snapshot(ctx, b.path("volume"), "", data)
	if err != nil {
		return err
	}
	b.report.add(stepKopiaFile, s)
	restored := b.path("restored")
	if s, err = k.restore(ctx, id, restored, b.size); err != nil {
		return err
	}
	b.report.add(stepKopiaRestore, s)
	if err := errors.Join(os.RemoveAll(restored), k.create(ctx)); err != nil {
		return err
	}
	if s, _, err = k.snapshot(ctx, "/bench", b.volume.path(), data); err != nil {
		return err
	}
	b.report.add(stepKopiaDevice, s)
	// kopia has read the device through the page cache.
	return errors.Join(os.RemoveAll(k.dir), b.volume.forget())
}

func (b *bench) full(ctx context.Context, o ours) error {
	var last backup
	for _, step := range []struct {
		name string
		args []string
	}{
		{stepWhole, nil},
		{stepPlain, []string{"--allocated", b.path("allocated"), "--compression", "none"}},
		{stepZstd, []string{"--allocated", b.path("allocated"), "--compression", "zstd"}},
		{stepFull, []string{"--allocated", b.path("allocated")}},
	} {
		if err := o.create(ctx); err != nil {
			return err
		}
		s, image, err := o.backup(ctx, b.volume.path(), "Full", step.args...)
		if err != nil {
			return err
		}
		b.report.add(step.name, s)
		last = image
	}
	s, _, err := o.child("image", "list", "--volume", "bench/volume").run(ctx)
	if err != nil {
		return err
	}
	b.report.add(stepStart, s)
	return b.restored(ctx, o, stepRestore, last.SnapshotID)
}

// restored restores an image, and compares it with the volume.
func (b *bench) restored(ctx context.Context, o ours, step, id string) error {
	s, _, err := o.child("image", "restore", "--snapshot", id, "--device", b.target.path()).run(ctx)
	if err != nil {
		return err
	}
	s.Work = b.size
	b.report.add(step, s)
	if err := sameBytes(ctx, b.volume.path(), b.target.path(), b.size); err != nil {
		return fmt.Errorf("check %s: %w", step, err)
	}
	return b.clear()
}
