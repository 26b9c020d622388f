package worker

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"

	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/task"
)

// stopGrace is how long a worker may take to stop. A pod has 30 s by default, and an access
// to a device that hangs cannot be interrupted.
const stopGrace = 10 * time.Second

// ErrReported means that there is no result, and that the log says why.
var ErrReported = errors.New("no result")

// errStopped is wrapped by the cause of a worker that was told to stop.
var errStopped = errors.New("told to stop")

// options are the flags of the command.
type options struct {
	terminationLog string
	credentials    string
	maxResults     int32
	log            zap.Options
}

// CredentialsPath is where a mover pod has the Secrets of the repository.
const CredentialsPath = "/credentials"

// NewCommand returns the command `worker`.
func NewCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Move the data of one volume: the process in a mover pod",
		Long: "Worker reads its task from the environment variable " + task.EnvRequest + ", moves the data of one volume\n" +
			"between a block device and the backup repository, and writes a report to its\n" +
			"termination log. It is started by the manager.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.terminationLog, "termination-log", "/dev/termination-log", "`file` that the report is written to")
	flags.StringVar(&o.credentials, "credentials", CredentialsPath, "`directory` with the mounted Secrets of the backup repository")
	flags.Int32Var(&o.maxResults, "metadata-max-results", 0, "blocks to ask the SnapshotMetadata service for in one message; 0 is the default")
	logging := flag.NewFlagSet("", flag.ContinueOnError)
	o.log.BindFlags(logging)
	flags.AddGoFlagSet(logging)
	return cmd
}

// run runs the task and writes the report.
func (o *options) run(parent context.Context) error {
	log := zap.New(zap.UseFlagOptions(&o.log))
	ctrl.SetLogger(log)
	klog.SetLogger(log)

	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	defer cancelOnSignal(cancel)()
	report, err := supervise(ctx, log, stopGrace, func() (task.Report, error) { return o.work(ctx, cancel, log) })
	return o.conclude(log, os.Stdout, report, err)
}

// conclude writes the report, unless the worker was told to stop. A report of success is also the
// last line of the log.
func (o *options) conclude(log logr.Logger, out io.Writer, report task.Report, err error) error {
	if errors.Is(err, errStopped) {
		log.Info("Stopped without a result", "cause", err.Error())
		return ErrReported
	}
	if err != nil {
		report.Error, report.Class = err.Error(), fault.Of(err)
		log.Error(err, "Operation failed", "class", report.Class)
	}
	text, err := report.Encode()
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.terminationLog, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if report.Error != "" {
		return ErrReported
	}
	// The manager reads this line at once. The kubelet would tell of the termination log up to a second
	// later, and then need two more seconds to remove the pod.
	if _, err := io.WriteString(out, task.ReportLine(text)+"\n"); err != nil {
		log.Info("Cannot write the report to the log", "severity", "warning", "error", err.Error())
	}
	return nil
}

// work reads the task and runs it in this pod.
func (o *options) work(ctx context.Context, cancel context.CancelCauseFunc, log logr.Logger) (task.Report, error) {
	request, err := task.FromEnviron(os.LookupEnv)
	if err != nil {
		return task.Report{}, fault.Mark(err)
	}
	log = log.WithValues("namespace", request.Namespace, "name", request.Name, "volume", request.Volume.String())
	c, err := NewClient()
	if err != nil {
		return task.Report{}, err
	}
	w := Worker{
		Environment: &pod{
			request:     request,
			client:      c,
			credentials: o.credentials,
			maxResults:  o.maxResults,
			fatal:       func(err error) { cancel(fmt.Errorf("repository must not be used any more: %w", err)) },
			log:         log,
		},
		Out:  os.Stdout,
		Log:  log,
		Stop: cancel,
		Now:  time.Now,
	}
	return w.Run(ctx, request)
}

// cancelOnSignal cancels at SIGTERM and SIGINT, until stop is called.
func cancelOnSignal(cancel context.CancelCauseFunc) (stop func()) {
	signals := make(chan os.Signal, 1)
	stopped := make(chan struct{})
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		select {
		case s := <-signals:
			cancel(fmt.Errorf("%w: %s", errStopped, s))
		case <-stopped:
		}
	}()
	return func() {
		signal.Stop(signals)
		close(stopped)
	}
}

// supervise runs work, and turns a panic into an error. After ctx was canceled it waits no
// longer than grace, and returns the cause, not the error that the cancellation led to.
func supervise(ctx context.Context, log logr.Logger, grace time.Duration, work func() (task.Report, error)) (task.Report, error) {
	type result struct {
		report task.Report
		err    error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			if p := recover(); p != nil {
				r.err = fault.Mark(fmt.Errorf("panic: %v", p))
				log.Error(r.err, "Worker panicked", "stack", string(debug.Stack()))
			}
			done <- r
		}()
		r.report, r.err = work()
	}()

	var r result
	select {
	case r = <-done:
	case <-ctx.Done():
		select {
		case r = <-done:
		case <-time.After(grace):
			r.err = fmt.Errorf("did not stop within %s", grace)
		}
	}
	if r.err != nil && ctx.Err() != nil {
		log.V(1).Info("Work ended", "error", r.err.Error())
		r.err = context.Cause(ctx)
	}
	return r.report, r.err
}
