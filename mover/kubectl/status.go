package kubectl

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"golang.org/x/term"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
)

// Operation is a DataUpload or a DataDownload.
type Operation struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Volume is namespace/name of the PVC, and Of the Velero Backup or Restore.
	Volume string `json:"volume"`
	Of     string `json:"of"`
	// InPlace is set for a download into a volume that existed.
	InPlace bool   `json:"inPlace,omitempty"`
	Phase   string `json:"phase"`
	Node    string `json:"node,omitempty"`
	Attempt int    `json:"attempt"`
	// BytesDone and BytesTotal count bytes of the volume. BytesPerSecond is since the start of the
	// operation, or since it was looked at last. It is 0 if nothing moves.
	BytesDone      int64 `json:"bytesDone"`
	BytesTotal     int64 `json:"bytesTotal"`
	BytesPerSecond int64 `json:"bytesPerSecond"`
	// SecondsLeft is 0 if it is not known.
	SecondsLeft int64     `json:"secondsLeft,omitempty"`
	Created     time.Time `json:"created"`
	Started     time.Time `json:"started,omitzero"`
	Completed   time.Time `json:"completed,omitzero"`
	// Message is what the operation waits for, or why it has failed.
	Message string `json:"message,omitempty"`
}

func newStatusCommand(s *session) *cobra.Command {
	var (
		format     output
		all, watch bool
		every      time.Duration
	)
	cmd := &cobra.Command{
		Use:   "status [BACKUP|RESTORE|NAMESPACE/PVC]",
		Short: "Show the uploads and downloads that run or wait",
		Args:  oneArgument(0),
		RunE: s.run(func(ctx context.Context, args []string) error {
			if err := format.check(); err != nil {
				return err
			}
			filter := ""
			if len(args) > 0 {
				filter, all = args[0], true
			}
			v := &viewer{session: s, format: format, filter: filter, all: all}
			if !watch {
				return v.show(ctx)
			}
			return v.follow(ctx, every)
		}),
	}
	format.add(cmd.Flags())
	cmd.Flags().BoolVarP(&all, "all", "a", false, "show those that have ended, too; so does naming a backup, a restore or a volume")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "keep showing until Ctrl-C; in a pipe, print a line when something changes")
	cmd.Flags().DurationVar(&every, "interval", 2*time.Second, "`time` between two looks with --watch")
	return cmd
}

// viewer shows operations, once or again and again.
type viewer struct {
	*session
	format output
	filter string
	all    bool
	// bars draws how much is done.
	bars bool
	// before is what was seen last, by name, and at is when.
	before map[string]Operation
	at     time.Time
}

// look lists the operations that are wanted, oldest first.
func (v *viewer) look(ctx context.Context) ([]Operation, error) {
	now := time.Now()
	var found []Operation
	for _, kind := range []string{identity.KindDataUpload, identity.KindDataDownload} {
		list, err := operation.List(ctx, v.Client, kind, client.InNamespace(v.namespace()))
		if err != nil {
			return nil, err
		}
		for _, view := range list {
			o := describe(view, now)
			if !v.all && view.Status.Phase.Terminal() || v.filter != "" && v.filter != o.Of && v.filter != o.Volume && v.filter != o.Name {
				continue
			}
			if last, ok := v.before[o.Name]; ok && o.Phase == string(phase.InProgress) {
				o.setRate(o.BytesDone-last.BytesDone, now.Sub(v.at))
			}
			found = append(found, o)
		}
	}
	slices.SortFunc(found, func(a, b Operation) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Volume, b.Volume))
	})
	v.at, v.before = now, map[string]Operation{}
	for _, o := range found {
		v.before[o.Name] = o
	}
	return found, nil
}

func describe(view *operation.View, now time.Time) Operation {
	status := view.Status
	o := Operation{
		Kind: view.Kind, Name: view.Name, Phase: string(status.Phase), Node: status.Node, Attempt: status.Attempt.Number,
		BytesDone: status.BytesDone, BytesTotal: status.BytesTotal,
		Volume: view.Claim().String(), Created: view.Created, Started: status.Started, Completed: status.Completed, Message: status.Message,
	}
	labels := view.Object().GetLabels()
	if o.Of = labels[velerov1.RestoreNameLabel]; view.Upload != nil {
		o.Of = labels[velerov1.BackupNameLabel]
	}
	o.InPlace = view.Download != nil && view.Download.Spec.DataMoverConfig[identity.ConfigInPlace] != ""
	if view.Damage != nil {
		o.Message = view.Damage.Error()
	}
	end := now
	if !status.Completed.IsZero() {
		end = status.Completed
	}
	if !status.Started.IsZero() {
		o.setRate(o.BytesDone, end.Sub(status.Started))
	}
	return o
}

// setRate sets the rate of so many bytes in a time, and what is left at this rate.
func (o *Operation) setRate(done int64, in time.Duration) {
	o.BytesPerSecond, o.SecondsLeft = 0, 0
	if in <= 0 || done <= 0 {
		return
	}
	o.BytesPerSecond = int64(float64(done) / in.Seconds())
	if left := o.BytesTotal - o.BytesDone; left > 0 && o.BytesPerSecond > 0 && o.Completed.IsZero() {
		o.SecondsLeft = left/o.BytesPerSecond + 1
	}
}

var statusColumns = []column{
	{"VOLUME", false},
	{"KIND", false},
	{"OF", false},
	{"PHASE", false},
	{"DONE", false},
	{"SIZE", false},
	{"RATE", false},
	{"LEFT", false},
	{"NODE", false},
	{"ATTEMPT", false},
	{"AGE", false},
	{"NAME", true},
	{"MESSAGE", false},
}

func (o Operation) row(now time.Time, bars bool) []any {
	done, rate := unknown, unknown
	if o.BytesTotal > 0 {
		percent := int(100 * o.BytesDone / o.BytesTotal)
		if done = fmt.Sprintf("%d%%", percent); bars {
			done = bar(percent) + " " + done
		}
	}
	if o.BytesPerSecond > 0 {
		rate = size(o.BytesPerSecond) + "/s"
	}
	volume := unknown
	if o.BytesTotal > 0 {
		volume = size(o.BytesTotal)
	}
	return []any{
		o.Volume, o.kind(), or(o.Of), o.Phase, done, volume, rate,
		lasting(time.Duration(o.SecondsLeft) * time.Second), or(o.Node), fmt.Sprint(o.Attempt), age(o.Created, now), o.Name, or(o.Message),
	}
}

// kind is what the operation does, for people.
func (o Operation) kind() string {
	kind := strings.TrimPrefix(o.Kind, "Data")
	if o.InPlace {
		kind += " in place"
	}
	return kind
}

// line says where the operation is.
func (o Operation) line() string {
	text := fmt.Sprintf("%s of %s for %s: %s", o.kind(), o.Volume, or(o.Of), o.Phase)
	if o.BytesTotal > 0 {
		text += fmt.Sprintf(", %s of %s", size(o.BytesDone), size(o.BytesTotal))
	}
	if o.Message != "" {
		text += ": " + o.Message
	}
	return text
}

// bar draws a part of a hundred.
func bar(percent int) string {
	const width = 20
	filled := min(max(percent, 0), 100) * width / 100
	return "[" + strings.Repeat("#", filled) + strings.Repeat("-", width-filled) + "]"
}

func (v *viewer) print(w io.Writer, found []Operation) error {
	rows := make([][]any, 0, len(found))
	for _, o := range found {
		rows = append(rows, o.row(v.at, v.bars))
	}
	return v.format.print(w, found, statusColumns, rows)
}

func (v *viewer) show(ctx context.Context) error {
	found, err := v.look(ctx)
	if err != nil {
		return err
	}
	if len(found) == 0 && (v.format == "table" || v.format == "wide") {
		text := fmt.Sprintf("Nothing runs or waits in namespace %s. --all shows what has ended, too.", v.namespace())
		switch {
		case v.filter != "":
			text = fmt.Sprintf("Namespace %s has no upload or download of %s. Without a name, --all shows what there is.", v.namespace(), v.filter)
		case v.all:
			text = fmt.Sprintf("Namespace %s has no upload or download.", v.namespace())
		}
		_, err := fmt.Fprintln(v.Streams.ErrOut, text)
		return err
	}
	return v.print(v.Streams.Out, found)
}

// follow shows the operations until the context ends: one view that is drawn again on a terminal,
// and else a line for each change.
func (v *viewer) follow(ctx context.Context, every time.Duration) error {
	if every <= 0 {
		return fmt.Errorf("interval is %s, want more than 0", every)
	}
	said := map[string]string{}
	for {
		found, err := v.look(ctx)
		switch {
		case err != nil && ctx.Err() == nil: // Ctrl-C is how it ends
			return err
		case err != nil:
		case v.live():
			if err := v.draw("", found); err != nil {
				return err
			}
		default:
			if err := v.lines(found, said); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(every):
		}
	}
}

// live reports whether somebody looks at a terminal.
func (v *viewer) live() bool {
	file, ok := v.Streams.Out.(interface{ Fd() uintptr })
	return ok && term.IsTerminal(int(file.Fd()))
}

// draw draws the view again on a terminal, below a title.
func (v *viewer) draw(title string, found []Operation) error {
	// Home, and clear to the end of the screen.
	if _, err := fmt.Fprint(v.Streams.Out, "\x1b[H\x1b[J", title); err != nil {
		return err
	}
	return v.print(v.Streams.Out, found)
}

// lines prints those that have changed since they were printed last.
func (v *viewer) lines(found []Operation, said map[string]string) error {
	for _, o := range found {
		text := o.line()
		if said[o.Name] == text {
			continue
		}
		said[o.Name] = text
		if _, err := fmt.Fprintln(v.Streams.Out, v.at.UTC().Format(time.RFC3339), text); err != nil {
			return err
		}
	}
	return nil
}
