// Command bench measures blockmover against stock kopia and against the bare
// device, in one run, on volumes in memory: `make bench` runs it.
//
// The volume is a mix of random bytes, text (the source of Go) and nothing in the
// proportions that the data of real volumes had, behind a loop device. In each run it
// is read and written raw, backed up and restored by kopia, and backed up, restored
// and backed up incrementally by blockmover; every restore is compared with its
// source. Hot spots, of which the repository's growth counts, are measured once.
//
// Compare numbers of one run only: the machine's load is in the report.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/blockmover/blockmover/internal/block"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
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

	volume *loopDevice
	target *loopDevice
}

func run(ctx context.Context) error {
	var (
		size   = flag.String("size", "4G", "size of the volume, such as 512M or 4G")
		runs   = flag.Int("runs", 3, "how often to measure")
		binary = flag.String("blockmover", "", "path of blockmover")
		kopia  = flag.String("kopia", "", "path of stock kopia")
		out    = flag.String("out", "bench.json", "file to write the report to")
		text   = flag.String("text", "", "directory of Go files")
		memory = flag.String("memory", "/dev/shm", "directory in memory")
	)
	flag.Parse()
	bytes, err := parseSize(*size)
	switch {
	case err != nil:
		return err
	case *runs < 1 || *runs > 100:
		return fmt.Errorf("%d runs, want 1 to 100", *runs)
	case *binary == "" || *kopia == "":
		return errors.New("--blockmover and --kopia are missing: run make bench")
	}
	corpus, err := readCorpus(*text)
	if err != nil {
		return err
	}
	b := &bench{size: bytes, corpus: corpus, binary: *binary, kopia: *kopia, report: newReport(bytes, *runs), start: time.Now()}
	if err := b.prepare(*memory); err != nil {
		return errors.Join(err, b.cleanUp())
	}
	err = errors.Join(b.measure(ctx, *runs), b.cleanUp())
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if err != nil {
		return err
	}
	b.report.conclude()
	if err := b.report.print(os.Stdout); err != nil {
		return err
	}
	if err := b.report.write(*out); err != nil {
		return err
	}
	fmt.Printf("\nreport: %s\n", *out)
	return nil
}

// minSize has room for all patterns of change.
const minSize = 64 * mib

func parseSize(text string) (int64, error) {
	number, unit := text, int64(1)
	for suffix, n := range map[string]int64{"M": mib, "G": gib} {
		if digits, ok := strings.CutSuffix(text, suffix); ok {
			number, unit = digits, n
		}
	}
	n, err := strconv.ParseInt(number, 10, 40)
	if err != nil || n*unit < minSize || n*unit > tib || n*unit%mib != 0 {
		return 0, fmt.Errorf("size is %q, want whole MiB from 64M to 1024G", text)
	}
	return n * unit, nil
}

// prefix names the directories in memory; the process ID follows.
const prefix = "blockmover-bench-"

// prepare makes the volumes.
func (b *bench) prepare(memory string) error {
	if err := removeStale(memory); err != nil {
		return err
	}
	// The volume, the target or what scattered writes add to the repository, the
	// repository, which a hot spot makes grow by the volume once more: three and a
	// half at most, and room for processes.
	need := b.size*4 + gib
	if free := availableMemory(); free < need {
		return fmt.Errorf("%s of memory are available and %s are needed: set BENCH_SIZE to less than %s", formatBytes(free), formatBytes(need), formatBytes(b.size))
	}
	b.dir = filepath.Join(memory, prefix+strconv.Itoa(os.Getpid()))
	for _, dir := range []string{b.path("volume"), b.path("target")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	b.say("taking %s of memory", formatBytes(need))
	if err := heat(b.path("heat"), need); err != nil {
		return fmt.Errorf("take memory: %w", err)
	}
	var err error
	if b.volume, err = b.device("volume"); err != nil {
		return err
	}
	b.target, err = b.device("target")
	return err
}

func (b *bench) path(names ...string) string {
	return filepath.Join(append([]string{b.dir}, names...)...)
}

// device makes a file in a directory of its own, which kopia backs up, and a
// device of it.
func (b *bench) device(name string) (*loopDevice, error) {
	file := b.path(name, "disk.raw")
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(b.size), f.Close()); err != nil {
		return nil, err
	}
	return attachLoop(file)
}

// heat uses memory and gives it back in pieces, of which it keeps the first pages in
// the file until that is removed. On a virtual machine the first use of a page costs
// several times what it takes to write it, and a guest may return what is free to its
// host, in large pieces, within seconds: which step pays for that, and how often,
// would be chance. What is free in small pieces stays.
func heat(file string, size int64) error {
	const piece, kept = 256 * kib, 4 * kib
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // memory does not fail late
	buf := make([]byte, mib)
	for n := int64(0); n < size; n += mib {
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	for n := int64(0); n < size; n += piece {
		if err := punch(f, n+kept, piece-kept); err != nil {
			return err
		}
	}
	return nil
}

// removeStale removes what a killed bench has left.
func removeStale(memory string) error {
	dirs, err := filepath.Glob(filepath.Join(memory, prefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), prefix))
		if err != nil || syscall.Kill(pid, 0) == nil {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

func availableMemory() int64 {
	text, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(text)) {
		var kb int64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	return 0
}

func (b *bench) cleanUp() error {
	var errs []error
	for _, d := range []*loopDevice{b.volume, b.target} {
		if d != nil {
			errs = append(errs, d.close())
		}
	}
	if b.dir != "" {
		errs = append(errs, os.RemoveAll(b.dir))
	}
	return errors.Join(errs...)
}

// say tells what comes next.
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

// pattern is a way to change 1 % of a volume. The limit is the issue's.
type pattern struct {
	name   string
	length int64 // of one write; 0 is all in one place
	limit  float64
}

var patterns = []pattern{
	{"1 % clustered", 0, 1.1},
	{"1 % scattered 1 MiB", mib, 0},
	{"1 % scattered 64 KiB", 64 * kib, 0},
	{"1 % scattered 4 KiB", 4 * kib, 0},
}

// hotspot is a workload of hotspotSteps incremental backups.
type hotspot struct {
	name   string
	length int64
	limit  float64
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

// sparse is a volume with almost nothing on it.
type sparse struct {
	name string
	size int64
}

var sparseSteps = []sparse{{"sparse 10 TiB", 10 * tib}, {"sparse 64 TiB", 64 * tib}}

// sparsePlaces is in how many places a sparse volume changes.
const sparsePlaces = 100

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

// clear gives the memory of the target back.
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
	o := ours{b.binary, b.path("ours")}
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
	if s, _, err = o.child("image", "restore", "--snapshot", last.SnapshotID, "--device", b.target.path()).run(ctx); err != nil {
		return err
	}
	s.Work = b.size
	b.report.add(stepRestore, s)
	if err := sameBytes(ctx, b.volume.path(), b.target.path(), b.size); err != nil {
		return fmt.Errorf("check restore: %w", err)
	}
	return b.clear()
}

// incremental changes 1 % of the volume and backs it up.
func (b *bench) incremental(ctx context.Context, o ours, p pattern, seed uint64) error {
	rnd := rand.New(rand.NewPCG(seed, 'i'))
	length, count := p.length, int64(1)
	if length == 0 {
		length = b.size / 100 / mib * mib
		length = max(length, mib)
	} else {
		count = max(1, b.size/100/length)
	}
	_, err := b.increment(ctx, o, p.name, scattered(rnd, b.size/length, count), length, seed)
	return err
}

func (b *bench) increment(ctx context.Context, o ours, name string, places []int64, length int64, seed uint64) (backup, error) {
	// Seeds of the mix come first.
	changed, err := change(b.volume.path(), places, length, seed+1000)
	if err != nil {
		return backup{}, fmt.Errorf("change volume: %w", err)
	}
	if err := writeList(b.path("changed"), changed); err != nil {
		return backup{}, err
	}
	s, image, err := o.backup(ctx, b.volume.path(), "Incremental", "--changed", b.path("changed"))
	if err != nil {
		return backup{}, err
	}
	s.Changed = total(changed)
	b.report.add(name, s)
	return image, nil
}

// hotspot backs a volume up again and again that is written in the same places
// more often than not, and restores the last image.
func (b *bench) hotspot(ctx context.Context, h hotspot) error {
	o := ours{b.binary, b.path("ours")}
	if err := o.create(ctx); err != nil {
		return err
	}
	if _, err := b.fill(ctx, 0); err != nil {
		return err
	}
	if _, _, err := o.backup(ctx, b.volume.path(), "Full", "--allocated", b.path("allocated")); err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(uint64(h.length), 'h'))
	var last backup
	for i := range uint64(hotspotSteps) {
		var err error
		places := hot(rnd, b.size/h.length, b.size/hotspotShare/h.length)
		if last, err = b.increment(ctx, o, h.name, places, h.length, uint64(h.length)+i); err != nil {
			return err
		}
	}
	if _, _, err := o.child("image", "restore", "--snapshot", last.SnapshotID, "--device", b.target.path()).run(ctx); err != nil {
		return err
	}
	if err := sameBytes(ctx, b.volume.path(), b.target.path(), b.size); err != nil {
		return fmt.Errorf("check restore: %w", err)
	}
	return errors.Join(b.clear(), os.RemoveAll(o.repo))
}

// holes restores a volume of which a tenth is not zero onto a target that is
// full of other bytes.
func (b *bench) holes(ctx context.Context, seed uint64) error {
	o := ours{b.binary, b.path("ours")}
	if err := o.create(ctx); err != nil {
		return err
	}
	f, err := os.OpenFile(b.volume.file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(punch(f, 0, b.size), f.Close(), b.volume.forget()); err != nil {
		return err
	}
	const length = 4 * mib
	places := scattered(rand.New(rand.NewPCG(seed, 'z')), b.size/length, b.size/length/10)
	if _, err := change(b.volume.path(), places, length, seed); err != nil {
		return fmt.Errorf("change volume: %w", err)
	}
	if _, err := rawAccess(ctx, b.target.path(), b.size, true); err != nil {
		return fmt.Errorf("write device: %w", err)
	}
	_, image, err := o.backup(ctx, b.volume.path(), "Full")
	if err != nil {
		return err
	}
	s, _, err := o.child("image", "restore", "--snapshot", image.SnapshotID, "--device", b.target.path()).run(ctx)
	if err != nil {
		return err
	}
	s.Work = b.size
	b.report.add(stepRestoreHoles, s)
	if err := sameBytes(ctx, b.volume.path(), b.target.path(), b.size); err != nil {
		return fmt.Errorf("check restore: %w", err)
	}
	return errors.Join(b.clear(), os.RemoveAll(o.repo))
}

// sparse backs up an empty volume, and then a quarter of the benchmark's size,
// 1 GiB of 4, in 100 places of it.
func (b *bench) sparse(ctx context.Context, s sparse) error {
	o := ours{b.binary, b.path("ours")}
	if err := o.create(ctx); err != nil {
		return err
	}
	file := b.path("sparse")
	defer os.Remove(file) //nolint:errcheck // the directory goes anyway
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(s.size), f.Close(), writeList(b.path("allocated"), nil)); err != nil {
		return err
	}
	first, _, err := o.backup(ctx, file, "Full", "--allocated", b.path("allocated"))
	if err != nil {
		return err
	}
	b.report.add(s.name+", empty", first)
	length := max(mib, b.size/4/sparsePlaces/mib*mib)
	places := scattered(rand.New(rand.NewPCG(uint64(s.size), 's')), s.size/length, sparsePlaces)
	changed, err := change(file, places, length, uint64(s.size))
	if err != nil {
		return fmt.Errorf("change sparse volume: %w", err)
	}
	if err := writeList(b.path("changed"), changed); err != nil {
		return err
	}
	second, _, err := o.backup(ctx, file, "Incremental", "--changed", b.path("changed"))
	if err != nil {
		return err
	}
	second.Changed = total(changed)
	b.report.add(s.name, second)
	return os.RemoveAll(o.repo)
}
