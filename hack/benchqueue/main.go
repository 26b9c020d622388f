// Command benchqueue measures what a queue costs the API server, and how soon the next
// operation starts. It runs a real etcd and API server, creates DataUploads, and lets a
// manager work on one at a time. Several managers are measured one after the other, each
// on an API server of its own:
//
//	benchqueue --kube PATH --crds DIR --manager now=PATH --manager before=PATH
//
// No CSI driver runs; the program only answers for its sidecar. So the operation that has
// the slot waits for its volume until preparingTimeout has passed, and fails. Then the next
// one starts. The measurements:
//
//	secured         the time until all operations wait for the slot
//	requests/min    requests of the manager while one operation waits and all others queue
//	next            from the end of an operation to the start of the next one
//	late            how much longer than preparingTimeout an operation lived, with its release
//
// Timestamps of the API have seconds; next and late are measured by the events of a watch.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "benchqueue:", err)
		os.Exit(1)
	}
}

type options struct {
	kube, crds string
	managers   []string
	uploads    int
	memory     []int
	turns      int
	timeout    time.Duration
}

func run() error {
	var o options
	pflag.StringVar(&o.kube, "kube", "", "`path` of the binary that has etcd and kube-apiserver")
	pflag.StringVar(&o.crds, "crds", "", "`directory` with the CRDs of VolumeSnapshots")
	pflag.StringArrayVar(&o.managers, "manager", nil, "`name=path` of a blockmover binary; may be repeated")
	pflag.IntVar(&o.uploads, "uploads", 1000, "`number` of DataUploads")
	pflag.IntSliceVar(&o.memory, "memory", nil, "measure only the peak memory with these `numbers` of DataUploads, such as 1,1000")
	pflag.IntVar(&o.turns, "turns", 3, "`number` of operations that end during the measurement")
	pflag.DurationVar(&o.timeout, "preparing-timeout", time.Minute, "`time` that an operation has the slot")
	pflag.Parse()
	if o.kube == "" || o.crds == "" || len(o.managers) == 0 {
		return errors.New("want --kube, --crds and at least one --manager")
	}
	log.SetLogger(logr.Discard()) // of envtest
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(o.memory) > 0 {
		_, path, _ := strings.Cut(o.managers[0], "=")
		return memoryTable(ctx, path, o)
	}
	fmt.Printf("%d DataUploads, one slot, preparingTimeout %s\n\n", o.uploads, o.timeout)
	fmt.Printf("%-12s %10s %13s %12s %12s\n", "manager", "secured", "requests/min", "next (max)", "late (max)")
	for _, m := range o.managers {
		name, path, ok := strings.Cut(m, "=")
		if !ok {
			return fmt.Errorf("--manager is %q, want name=path", m)
		}
		r, err := measure(ctx, path, o)
		if err != nil {
			return fmt.Errorf("measure %s: %w", name, err)
		}
		fmt.Printf("%-12s %10s %13.1f %12s %12s\n", name, r.secured.Round(time.Second), r.perMinute(),
			slices.Max(r.next).Round(time.Millisecond), slices.Max(r.late).Round(time.Millisecond))
	}
	return nil
}

// result is what was measured of one manager.
type result struct {
	secured    time.Duration
	requests   float64
	idle       time.Duration
	next, late []time.Duration
}

func (r result) perMinute() float64 { return r.requests / r.idle.Minutes() }

func measure(ctx context.Context, path string, o options) (result, error) {
	var r result
	w, err := newWorld(ctx, o)
	if err != nil {
		return r, errors.Join(err, w.close())
	}
	err = w.measure(ctx, path, o, &r)
	return r, errors.Join(err, w.close())
}

func (w *world) measure(ctx context.Context, path string, o options, r *result) error {
	if err := w.create(ctx, o.uploads); err != nil {
		return err
	}
	turns, err := w.watch(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := w.startManager(path, o); err != nil {
		return err
	}
	if err := w.waitUntilSecured(ctx, o.uploads); err != nil {
		return err
	}
	r.secured = time.Since(start)
	// The first operation ended at an unknown time, and is not counted.
	holder, err := turns.next(ctx)
	if err != nil {
		return err
	}
	for range o.turns {
		if err := w.idle(ctx, o, r); err != nil {
			return err
		}
		following, err := turns.next(ctx)
		if err != nil {
			return err
		}
		r.next = append(r.next, following.accepted.Sub(following.before))
		r.late = append(r.late, following.before.Sub(holder.accepted)-o.timeout)
		holder = following
	}
	return nil
}

// idle counts the requests in the middle of a turn.
func (w *world) idle(ctx context.Context, o options, r *result) error {
	const share = 6
	if err := sleep(ctx, o.timeout/share); err != nil {
		return err
	}
	first, err := w.requests(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := sleep(ctx, o.timeout/share*(share-2)); err != nil {
		return err
	}
	last, err := w.requests(ctx)
	if err != nil {
		return err
	}
	r.requests += last - first
	r.idle += time.Since(start)
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
