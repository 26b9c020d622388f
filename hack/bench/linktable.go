package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
)

// lines are what is measured: one to a data center of the neighbourhood, and one that is farther.
var lines = []line{
	{name: "20 ms, 125 MB/s", rtt: 20 * time.Millisecond, rate: 125e6},
	{name: "20 ms, 125 MB/s, 1 of 1,000 requests cut", rtt: 20 * time.Millisecond, rate: 125e6, cutEvery: 1000},
	{name: "80 ms, 40 MB/s", rtt: 80 * time.Millisecond, rate: 40e6},
}

// stockPrefix is where the repository of stock kopia is.
const stockPrefix = "stock/"

// linkWrites is how many places an increment changes.
const linkWrites = 2000

// linkBench compares blockmover and stock kopia over a link to an object store.
type linkBench struct {
	*bench
	kopiaDir string
	store    *exec.Cmd
	address  string
	storeDir string
}

// linkTables measures each line.
func (b *bench) linkTables(ctx context.Context, versitygw string, runs int) (err error) {
	if b.links < 1 || b.links > len(lines) {
		return fmt.Errorf("%d links, want 1 to %d", b.links, len(lines))
	}
	l := &linkBench{bench: b, kopiaDir: b.path("kopia"), storeDir: b.path("store")}
	if err := l.startStore(ctx, versitygw); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.stopStore()) }()
	for i, k := range lines[:b.links] {
		t := &linkTable{line: k, old: i == 0}
		for run := range runs {
			b.say("%s, run %d of %d", k.name, run+1, runs)
			if err := l.round(ctx, t, uint64(run)); err != nil {
				return err
			}
		}
		fmt.Print(t)
		if t.old {
			b.say("%s, many small backups", k.name)
			nights := &linkTable{line: k}
			if err := l.nights(ctx, nights, runs); err != nil {
				return err
			}
			fmt.Print(nights)
		}
	}
	return nil
}

func (l *linkBench) startStore(ctx context.Context, versitygw string) error {
	if err := os.MkdirAll(filepath.Join(l.storeDir, linkBucket), 0o700); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	l.address = listener.Addr().String()
	if err := listener.Close(); err != nil {
		return err
	}
	l.store = exec.CommandContext(ctx, versitygw, "--access", linkAccess, "--secret", linkSecret, "--region", linkRegion, "--port", l.address, "--quiet", "posix", l.storeDir)
	l.store.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := l.store.Start(); err != nil {
		return fmt.Errorf("start object store: %w", err)
	}
	for range 100 {
		connection, err := net.Dial("tcp", l.address)
		if err == nil {
			return connection.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.New("start object store: it does not answer")
}

func (l *linkBench) stopStore() error {
	_ = l.store.Process.Kill()
	_ = l.store.Wait() // it was killed
	return os.RemoveAll(l.storeDir)
}

// linkTable has the samples of one line.
type linkTable struct {
	line
	// old is set if repositories that have grown old are measured, too.
	old   bool
	rows  []*linkRow
	notes []string
}

// linkRow is a step: what the link alone needs for the bytes that passed, and what the two tools did.
type linkRow struct {
	name  string
	sides [2][]linkSample
}

type linkSample struct {
	sample
	requests, connections, moved int64
}

const (
	sideOurs = iota
	sideKopia
)

func (t *linkTable) add(name string, side int, s linkSample) {
	for _, r := range t.rows {
		if r.name == name {
			r.sides[side] = append(r.sides[side], s)
			return
		}
	}
	t.rows = append(t.rows, &linkRow{name: name})
	t.add(name, side, s)
}

// String is the table: for each step the medians of both tools. The share is that of the time in which the link alone would
// have moved the same bytes.
func (t *linkTable) String() string {
	text := fmt.Sprintf("\n%s\n%-54s %9s %6s %7s %9s %6s %10s %10s | %9s %6s %7s %9s %6s %10s\n", t.name,
		"", "ours", "share", "CPU", "requests", "conns", "link alone", "memory", "kopia", "share", "CPU", "requests", "conns", "link alone")
	for _, r := range t.rows {
		text += fmt.Sprintf("%-54s %s", r.name, t.cells(r.sides[sideOurs]))
		text += fmt.Sprintf(" %10s | ", formatBytes(median(r.sides[sideOurs], func(s linkSample) int64 { return s.PeakRSS })))
		text += t.cells(r.sides[sideKopia]) + "\n"
	}
	for _, note := range t.notes {
		text += note + "\n"
	}
	return text
}

func (t *linkTable) cells(samples []linkSample) string {
	if len(samples) == 0 {
		return ""
	}
	seconds := median(samples, func(s linkSample) float64 { return s.Seconds })
	requests := median(samples, func(s linkSample) int64 { return s.requests })
	connections := median(samples, func(s linkSample) int64 { return s.connections })
	alone := t.takes(median(samples, func(s linkSample) int64 { return s.moved })).Seconds()
	cpu := median(samples, func(s linkSample) float64 { return s.CPUSeconds })
	return fmt.Sprintf("%7.1f s %6.2f %5.1f s %9d %6d %8.1f s", seconds, alone/seconds, cpu, requests, connections, alone)
}

// linkRound is one measurement of all steps, on a new repository for each tool.
type linkRound struct {
	*linkBench
	table *linkTable
	// image and id are the newest ones of the two tools.
	image repository.SnapshotID
	id    string
}

func (l *linkBench) round(ctx context.Context, t *linkTable, seed uint64) error {
	if _, err := l.fill(ctx, seed); err != nil {
		return err
	}
	if err := l.create(ctx); err != nil {
		return err
	}
	r := &linkRound{linkBench: l, table: t}
	if err := r.backups(ctx, "full", repository.Full, moverTask{Device: l.volume.path(), Allocated: l.path("allocated")}, true); err != nil {
		return err
	}
	if err := r.restores(ctx, "restore"); err != nil {
		return err
	}
	steps := []struct {
		name   string
		length int64
	}{{"2,000 x 64 KiB", 64 * kib}, {"nothing", 0}, {"2,000 x 4 KiB", 4 * kib}, {"2,000 x 4 KiB", 4 * kib}, {"2,000 x 4 KiB", 4 * kib}}
	for n, step := range steps {
		if err := l.write(step.length, seed+uint64(n)); err != nil { //nolint:gosec // a small index
			return err
		}
		// kopia reads all of the volume each time, so one of the last three is enough.
		both := n < 2 || n == len(steps)-1
		if err := r.backups(ctx, "incremental: "+step.name, repository.Incremental, moverTask{Device: l.volume.path(), Changed: l.path("changed")}, both); err != nil {
			return err
		}
	}
	if err := r.restores(ctx, "restore after 5 incrementals"); err != nil {
		return err
	}
	s, _, err := l.mover(ctx, t.line, moverTask{})
	if err != nil {
		return err
	}
	t.add("open and list", sideOurs, s)
	if !t.old {
		return nil
	}
	return r.grow(ctx, len(steps), seed)
}

// create makes both repositories anew.
func (l *linkBench) create(ctx context.Context) error {
	bucket := filepath.Join(l.storeDir, linkBucket)
	if err := errors.Join(os.RemoveAll(bucket), os.Mkdir(bucket, 0o700)); err != nil {
		return err
	}
	for _, prefix := range []string{"kopia/" + linkNamespace + "/", stockPrefix} {
		if err := os.RemoveAll(l.kopiaDir); err != nil { // it has the format of the other one
			return err
		}
		if _, _, err := l.tool().child(connection("create", l.address, prefix)...).run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// backups makes an image with each tool, or with ours only. Ours is of a kind.
func (r *linkRound) backups(ctx context.Context, name string, kind repository.Kind, task moverTask, both bool) error {
	s, result, err := r.mover(ctx, r.table.line, task)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if result.Kind != kind {
		return fmt.Errorf("%s: image %s is %s, want %s", name, result.SnapshotID, result.Kind, kind)
	}
	r.image = result.SnapshotID
	r.table.add(name, sideOurs, s)
	if !both {
		return nil
	}
	if s, r.id, err = r.stockBackup(ctx, r.table.line); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	r.table.add(name, sideKopia, s)
	return nil
}

// write changes the volume in linkWrites places of so many bytes, and writes the list of them.
func (l *linkBench) write(length int64, seed uint64) error {
	var changed []block.Extent
	if length > 0 {
		var err error
		places := scattered(rand.New(rand.NewPCG(seed, 'l')), l.size/length, min(linkWrites, l.size/length))
		if changed, err = change(l.volume.path(), places, length, seed+2000); err != nil {
			return err
		}
	}
	return writeList(l.path("changed"), changed)
}

// restores restores the newest image of each tool.
func (r *linkRound) restores(ctx context.Context, name string) error {
	if err := errors.Join(r.restore(ctx, name), r.clear()); err != nil {
		return err
	}
	target := r.path("target", "kopia")
	s, _, err := r.kopiaOver(ctx, r.table.line, r.tool().child("snapshot", "restore", "--no-progress", r.id, target))
	r.table.add(name, sideKopia, s)
	return errors.Join(err, os.RemoveAll(target))
}

// restore restores our newest image, and compares it with the volume.
func (r *linkRound) restore(ctx context.Context, name string) error {
	if err := r.clear(); err != nil {
		return err
	}
	s, _, err := r.mover(ctx, r.table.line, moverTask{Device: r.target.path(), Restore: r.image})
	if err != nil {
		return err
	}
	r.table.add(name, sideOurs, s)
	if err := sameBytes(ctx, r.volume.path(), r.target.path(), r.size); err != nil {
		return fmt.Errorf("check restore: %w", err)
	}
	return nil
}

// mover runs a mover over the line.
func (l *linkBench) mover(ctx context.Context, k line, task moverTask) (linkSample, moverResult, error) {
	task.Dir = l.path("mover")
	if task.Volume == "" {
		task.Volume = "volume"
	}
	defer func() { _ = os.RemoveAll(task.Dir) }() // the next one makes its own
	var r moverResult
	s, err := l.over(k, func(address string) (sample, error) {
		task.Address = address
		text, err := json.Marshal(task)
		if err != nil {
			return sample{}, err
		}
		self, err := os.Executable()
		if err != nil {
			return sample{}, err
		}
		s, out, err := child{args: []string{self, moverCommand, string(text)}, env: []string{"HOME=" + task.Dir}}.run(ctx)
		if err != nil {
			return s, err
		}
		return s, json.Unmarshal(out, &r)
	})
	s.PeakRSS = r.PeakRSS
	return s, r, err
}

// over runs something over a new line, and counts.
func (l *linkBench) over(k line, do func(address string) (sample, error)) (linkSample, error) {
	link, err := startLink(k, l.address)
	if err != nil {
		return linkSample{}, err
	}
	s, err := do(link.address)
	err = errors.Join(err, link.close())
	return linkSample{sample: s, requests: link.requests.Load(), connections: link.connections.Load(), moved: max(link.sent.Load(), link.received.Load())}, err
}

// connection is how stock kopia finds its repository, below a prefix.
func connection(verb, address, prefix string) []string {
	args := []string{
		"repository", verb, "s3", "--bucket", linkBucket, "--prefix", prefix, "--endpoint", address, "--disable-tls",
		"--region", linkRegion, "--access-key", linkAccess, "--secret-access-key", linkSecret,
	}
	if verb == "create" {
		args = append(args, "--block-hash", hashBLAKE2b)
	}
	return args
}

func (l *linkBench) tool() stock { return stock{binary: l.kopia, dir: l.kopiaDir} }

// kopiaOver runs a command of stock kopia over the line, as a client that connects and has no caches, as a pod does.
func (l *linkBench) kopiaOver(ctx context.Context, k line, c child) (linkSample, []byte, error) {
	if err := os.RemoveAll(l.kopiaDir); err != nil {
		return linkSample{}, nil, err
	}
	var out []byte
	s, err := l.over(k, func(address string) (sample, error) {
		connected, _, err := l.tool().child(connection("connect", address, stockPrefix)...).run(ctx)
		if err != nil {
			return connected, err
		}
		var s sample
		s, out, err = c.run(ctx)
		s.Seconds, s.CPUSeconds = s.Seconds+connected.Seconds, s.CPUSeconds+connected.CPUSeconds
		return s, err
	})
	return s, out, err
}

// stockBackup backs up the device as a stream with stock kopia.
func (l *linkBench) stockBackup(ctx context.Context, k line) (linkSample, string, error) {
	s, out, err := l.kopiaOver(ctx, k, l.tool().snapshotOf(l.path("volume"), l.volume.path()))
	if err != nil {
		return s, "", err
	}
	id, err := snapshotID(out)
	return s, id, err
}
