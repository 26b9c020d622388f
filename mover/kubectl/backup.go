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
		Long: short + ". The command line of Velero makes the object, so it has the flags of\n" +
			"the velero that is installed here. Our own flags become annotations, which every\n" +
			"version of Velero keeps.",
		DisableFlagParsing: true, // they are Velero's
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
		return fmt.Errorf("run velero %s create: %w: %s", kind, err, strings.TrimSpace(stderr.String()))
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

// ended are the phases of a Backup or a Restore that has ended.
var ended = []string{
	string(velerov1.BackupPhaseCompleted), string(velerov1.BackupPhasePartiallyFailed), string(velerov1.BackupPhaseFailed), string(velerov1.BackupPhaseFailedValidation),
}

// phaseOf returns the phase of a Backup or a Restore.
func (s *session) phaseOf(ctx context.Context, kind, name string) (string, error) {
	key := client.ObjectKey{Namespace: s.namespace(), Name: name}
	if kind == "Restore" {
		restore := &velerov1.Restore{}
		err := s.Client.Get(ctx, key, restore)
		return string(restore.Status.Phase), err
	}
	backup := &velerov1.Backup{}
	err := s.Client.Get(ctx, key, backup)
	return string(backup.Status.Phase), err
}

// wait shows a Backup or a Restore until it has ended. It fails unless it is complete.
func (s *session) wait(ctx context.Context, kind, name string) error {
	v := &viewer{session: s, format: "table", filter: name, all: true, bars: true}
	said := map[string]string{}
	last := ""
	for {
		is, err := s.phaseOf(ctx, kind, name)
		if err != nil {
			return fmt.Errorf("get %s %s: %w", kind, name, err)
		}
		found, err := v.look(ctx)
		if err != nil {
			return err
		}
		title := fmt.Sprintf("%s %s: %s", kind, name, or(is))
		switch {
		case v.live():
			err = v.draw(title+"\n", found)
		case is != last:
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
		last = is
		if slices.Contains(ended, last) {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s %s: %w; it goes on", kind, name, ctx.Err())
		case <-time.After(2 * time.Second):
		}
	}
	if last != string(velerov1.BackupPhaseCompleted) {
		describe := "velero backup describe"
		if kind == "Restore" {
			describe = "velero restore describe"
		}
		return fmt.Errorf("%s %s is %s: see `%s %s --details`", kind, name, last, describe, name)
	}
	return nil
}
