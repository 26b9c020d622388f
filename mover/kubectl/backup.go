package kubectl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/inplace"
	"github.com/blockmover/blockmover/internal/kube"
)

func newBackupCommand(s *session) *cobra.Command {
	cmd := group("backup", "Make backups")
	cmd.AddCommand(newCreateCommand(s, "backup", "create NAME [--full|--incremental] [--wait] [flags of `velero backup create`]",
		"Make a backup, and say whether its images are full"))
	return cmd
}

func newScheduleCommand(s *session) *cobra.Command {
	cmd := group("schedule", "Make schedules of backups")
	cmd.AddCommand(newCreateCommand(s, "schedule", "create NAME [--full|--incremental] [flags of `velero schedule create`]",
		"Make a schedule, and say whether the images of its backups are full"))
	return cmd
}

func newRestoreCommand(s *session) *cobra.Command {
	cmd := group("restore", "Restore backups")
	cmd.AddCommand(newCreateCommand(s, "restore", "create NAME --from-backup BACKUP [--in-place[=any-volume]] [--wait] [flags of `velero restore create`]",
		"Make a restore, and say whether it writes into PVCs that exist"))
	return cmd
}

// group is a command that has only subcommands.
func group(name, short string) *cobra.Command {
	return &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
}

func newCreateCommand(s *session, kind, use, short string) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Long: short + ".\n\n" +
			"The command line of Velero makes the object, so it has the flags of the velero\n" +
			"that is installed here: `velero " + kind + " create --help` lists them. Beside them,\n" +
			"there are these flags. All but --wait become annotations, which every version of\n" +
			"Velero keeps.\n\n" + ownFlags[kind],
		DisableFlagParsing:    true, // they are Velero's
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if slices.ContainsFunc(args, func(a string) bool { return a == "-h" || a == "--help" }) {
				return cmd.Help()
			}
			c, err := s.parseCreate(args)
			if err != nil {
				return err
			}
			if err := c.check(kind); err != nil {
				return err
			}
			return s.run(func(ctx context.Context, _ []string) error { return s.create(ctx, kind, c) })(cmd, nil)
		},
	}
}

// ownFlags are those that Velero does not have, for people.
var ownFlags = map[string]string{
	"backup": "  --full          read and store volumes without looking at earlier backups of them\n" +
		"  --incremental   begin at the newest image, whatever the volume policy says\n" +
		"  --wait          show the volumes until the backup ends; fail unless it is Completed\n\n" +
		"Which volumes Blockmover backs up, a volume policy says, or\n" +
		"--snapshot-move-data --data-mover blockmover.",
	"schedule": "  --full          the backups read and store volumes without looking at earlier backups of them\n" +
		"  --incremental   they begin at the newest image, whatever the volume policy says\n\n" +
		"Which volumes Blockmover backs up, a volume policy says, or\n" +
		"--snapshot-move-data --data-mover blockmover.",
	"restore": "  --in-place              write into PVCs that exist what differs, and restore only PVCs\n" +
		"  --in-place=any-volume   do so even if a PVC has another volume than the one that was backed up\n" +
		"  --wait                  show the volumes until the restore ends; fail unless it is Completed\n\n" +
		"Without --in-place, a PVC that exists is left as it is.",
}

// creation is what a create command was asked for.
type creation struct {
	// Type is full, incremental, or "" if nobody said.
	Type string
	// inPlace is how a restore treats PVCs that exist, or "" if nobody said.
	inPlace inplace.Mode
	wait    bool
	// velero are the arguments for Velero.
	velero []string
}

// check refuses what does not go with a kind of object.
func (c creation) check(kind string) error {
	switch {
	case c.wait && kind == "schedule":
		return errors.New("a schedule is not waited for: leave out --wait")
	case c.Type != "" && kind == "restore":
		return errors.New("a restore has no type: leave out --full and --incremental")
	case c.inPlace != "" && kind != "restore":
		return errors.New("only a restore is in place: leave out --in-place")
	}
	return nil
}

// annotations are what our flags become.
func (c creation) annotations() map[string]string {
	annotations := map[string]string{}
	if c.Type != "" {
		annotations[identity.AnnotationBackupType] = c.Type
	}
	if c.inPlace != "" {
		annotations[identity.AnnotationInPlace] = string(c.inPlace)
	}
	return annotations
}

// parseCreate takes our flags out of the arguments. Those of kubectl say where the cluster is; Velero
// has other names for some.
func (s *session) parseCreate(args []string) (creation, error) {
	var c creation
	places := map[string]struct {
		into   **string
		velero string
	}{
		"--kubeconfig": {&s.config.KubeConfig, "--kubeconfig"},
		"--context":    {&s.config.Context, "--kubecontext"},
		"--namespace":  {&s.config.Namespace, ""},
		"-n":           {&s.config.Namespace, ""},
	}
	for i := 0; i < len(args); i++ {
		name, value, hasValue := strings.Cut(args[i], "=")
		place, isPlace := places[name]
		switch {
		case isPlace:
			if !hasValue {
				if i++; i == len(args) {
					return c, fmt.Errorf("flag %s needs a value", name)
				}
				value = args[i]
			}
			*place.into = &value
			if place.velero != "" {
				c.velero = append(c.velero, place.velero, value)
			}
		case args[i] == "--full" || args[i] == "--incremental":
			if err := c.setType(strings.TrimPrefix(args[i], "--")); err != nil {
				return c, err
			}
		case name == "--in-place":
			if !hasValue {
				value = string(inplace.SameVolume)
			}
			if err := c.setInPlace(value); err != nil {
				return c, err
			}
		case args[i] == "--wait" || args[i] == "-w":
			c.wait = true
		case name == "--output" || name == "-o":
			return c, errors.New("--output does not go with this command: it creates the object")
		default:
			c.velero = append(c.velero, args[i])
		}
	}
	return c, nil
}

// resourceFlags are the flags of Velero by which a restore chooses kinds.
var resourceFlags = []string{"--include-resources", "--exclude-resources"}

// onlyClaims makes a restore in place leave out everything but PVCs, unless its flags choose
// kinds: Velero would restore pods, too, which then use the volumes.
func (c creation) onlyClaims() []string {
	chosen := slices.ContainsFunc(c.velero, func(arg string) bool {
		name, _, _ := strings.Cut(arg, "=")
		return slices.Contains(resourceFlags, name)
	})
	if c.inPlace == "" || c.inPlace == inplace.Off || chosen {
		return c.velero
	}
	return append(slices.Clone(c.velero), resourceFlags[0], "persistentvolumeclaims")
}

func (c *creation) setType(wanted string) error {
	if c.Type != "" && c.Type != wanted {
		return errors.New("--full and --incremental exclude each other")
	}
	c.Type = wanted
	return nil
}

func (c *creation) setInPlace(value string) error {
	mode, err := inplace.ParseMode(value)
	if err != nil || value == "" {
		return fmt.Errorf("--in-place is %q, want %s (which it is without a value), %s or %s", value, inplace.SameVolume, inplace.AnyVolume, inplace.Off)
	}
	c.inPlace = mode
	return nil
}

// create has Velero render the object, and creates it.
func (s *session) create(ctx context.Context, kind string, c creation) error {
	args := append([]string{kind, "create", "--namespace", s.namespace(), "--output", "yaml"}, c.onlyClaims()...)
	cmd := exec.CommandContext(ctx, "velero", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("run velero: %w: install Velero's command line", err)
		}
		return fmt.Errorf("run velero %s create: %w: %s", kind, err, refusal(kind, stderr.String()))
	}
	object := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(stdout.Bytes(), &object.Object); err != nil {
		return fmt.Errorf("read what velero %s create prints: %w", kind, err)
	}
	unstructured.RemoveNestedField(object.Object, "status")
	unstructured.RemoveNestedField(object.Object, "metadata", "creationTimestamp")
	for key, value := range c.annotations() {
		kube.SetAnnotation(object, key, value)
	}
	object.SetNamespace(s.namespace())
	if err := s.Client.Create(ctx, object); err != nil {
		return fmt.Errorf("create %s %s: %w", object.GetKind(), object.GetName(), err)
	}
	if _, err := fmt.Fprintf(s.Streams.Out, "%s %s was created in namespace %s\n", object.GetKind(), object.GetName(), s.namespace()); err != nil {
		return err
	}
	if !c.wait {
		return nil
	}
	return s.wait(ctx, object.GetKind(), object.GetName())
}

// refusal is what Velero says against its arguments, without the list of all its flags.
func refusal(kind, said string) string {
	why, _, lists := strings.Cut(strings.TrimSpace(said), "\nUsage:")
	if !lists {
		return why
	}
	return fmt.Sprintf("%s: `velero %s create --help` lists the flags of Velero, and `kubectl blockmover %s create --help` ours",
		strings.TrimPrefix(strings.TrimSpace(why), "Error: "), kind, kind)
}

// ended are the phases of a Backup or a Restore that has ended.
var ended = []string{
	string(velerov1.BackupPhaseCompleted), string(velerov1.BackupPhasePartiallyFailed), string(velerov1.BackupPhaseFailed), string(velerov1.BackupPhaseFailedValidation),
}

// outcome is how far a Backup or a Restore is, and what Velero says of it.
type outcome struct {
	phase    string
	invalid  []string
	warnings int
}

// outcomeOf returns the outcome of a Backup or a Restore.
func (s *session) outcomeOf(ctx context.Context, kind, name string) (outcome, error) {
	key := client.ObjectKey{Namespace: s.namespace(), Name: name}
	if kind == "Restore" {
		restore := &velerov1.Restore{}
		err := s.Client.Get(ctx, key, restore)
		return outcome{string(restore.Status.Phase), restore.Status.ValidationErrors, restore.Status.Warnings}, err
	}
	backup := &velerov1.Backup{}
	err := s.Client.Get(ctx, key, backup)
	return outcome{string(backup.Status.Phase), backup.Status.ValidationErrors, backup.Status.Warnings}, err
}

// conclude says what a Backup or a Restore has come to, with so many volumes of ours. It fails unless
// it is complete.
func (s *session) conclude(kind, name string, is outcome, volumes int) error {
	describe := "velero backup describe"
	if kind == "Restore" {
		describe = "velero restore describe"
	}
	describe = fmt.Sprintf("see `%s %s --details`", describe, name)
	switch {
	case is.phase != string(velerov1.BackupPhaseCompleted) && len(is.invalid) > 0:
		return fmt.Errorf("%s %s is %s: %s", kind, name, is.phase, strings.Join(is.invalid, "; "))
	case is.phase != string(velerov1.BackupPhaseCompleted):
		return fmt.Errorf("%s %s is %s: %s", kind, name, is.phase, describe)
	}
	var notes []string
	switch {
	case volumes > 0:
	case kind == "Restore":
		notes = append(notes, "Blockmover has restored no volume: a PVC that exists is left as it is, without --in-place")
	default:
		notes = append(notes, "Blockmover has backed up no volume: that takes --snapshot-move-data --data-mover blockmover, or a volume policy with mover: blockmover")
	}
	if is.warnings > 0 {
		notes = append(notes, fmt.Sprintf("warnings: %d: %s", is.warnings, describe))
	}
	for _, note := range notes {
		if _, err := fmt.Fprintln(s.Streams.ErrOut, note); err != nil {
			return err
		}
	}
	return nil
}

// wait shows a Backup or a Restore until it has ended. It fails unless it is complete.
func (s *session) wait(ctx context.Context, kind, name string) error {
	v := &viewer{session: s, format: "table", filter: name, all: true, bars: true}
	said := map[string]string{}
	last := ""
	for {
		is, err := s.outcomeOf(ctx, kind, name)
		if err != nil {
			return fmt.Errorf("get %s %s: %w", kind, name, err)
		}
		found, err := v.look(ctx)
		if err != nil {
			return err
		}
		title := fmt.Sprintf("%s %s: %s", kind, name, or(is.phase))
		switch {
		case v.live():
			err = v.draw(title+"\n", found)
		case is.phase != last:
			if _, err = fmt.Fprintln(s.Streams.Out, v.at.UTC().Format(time.RFC3339), title); err != nil {
				return err
			}
			fallthrough
		default:
			err = v.lines(found, said)
		}
		if err != nil {
			return err
		}
		last = is.phase
		if slices.Contains(ended, last) {
			return s.conclude(kind, name, is, len(found))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s %s: %w; it goes on", kind, name, ctx.Err())
		case <-time.After(2 * time.Second):
		}
	}
}
