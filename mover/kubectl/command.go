package kubectl

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/spf13/cobra"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Name is the name of the program as a plugin of kubectl.
const Name = "kubectl-blockmover"

// defaultNamespace is where Velero is unless somebody says otherwise.
const defaultNamespace = "velero"

// NewCommand returns the command `kubectl blockmover`.
func NewCommand() *cobra.Command {
	s := &session{
		config:  genericclioptions.NewConfigFlags(true),
		Streams: genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr},
	}
	cmd := &cobra.Command{
		Use:   "blockmover",
		Short: "See and steer what Blockmover does",
		Annotations: map[string]string{
			cobra.CommandDisplayNameAnnotation: "kubectl blockmover",
		},
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	s.config.AddFlags(cmd.PersistentFlags())
	cmd.PersistentFlags().Lookup("namespace").Usage = "namespace of Velero; the default is $VELERO_NAMESPACE, or else " + defaultNamespace
	cmd.AddCommand(newStatusCommand(s), newChainCommand(s), newBasesCommand(s), newCancelCommand(s), newBackupCommand(s), newScheduleCommand(s), newRestoreCommand(s), newVerifyCommand(s), newFilesCommand(s), newDoctorCommand(s), newPluginCommand(s))
	return cmd
}

// oneArgument is for a command that takes one argument, and needs it if least is 1. The error says
// what the argument is.
func oneArgument(least int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > 1 {
			return fmt.Errorf("usage: %s", cmd.UseLine())
		}
		return nil
	}
}

// session is one call of the plugin.
type session struct {
	config  *genericclioptions.ConfigFlags
	Streams genericiooptions.IOStreams
	// Client is made from the flags if a test has not set it.
	Client client.Client
	// podLogs reads the log of a pod. If a test has not set it, it is the API server that does.
	podLogs func(ctx context.Context, pod, container string) (io.ReadCloser, error)
	// podExec runs a command in a pod. If a test has not set it, it is the API server that does.
	podExec func(ctx context.Context, pod string, command []string, in io.Reader, out, messages io.Writer) error
}

// namespace is that of Velero.
func (s *session) namespace() string {
	if s.config.Namespace != nil && *s.config.Namespace != "" {
		return *s.config.Namespace
	}
	if name := os.Getenv("VELERO_NAMESPACE"); name != "" {
		return name
	}
	return defaultNamespace
}

func (s *session) connect() error {
	if s.Client != nil {
		return nil
	}
	config, err := s.config.ToRESTConfig()
	if err != nil {
		return fmt.Errorf("find cluster: %w", err)
	}
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	s.Client, err = client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("connect to cluster: %w", err)
	}
	return nil
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, velerov1.AddToScheme, velerov2alpha1.AddToScheme, snapshotv1.AddToScheme, apiextensionsv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register kinds: %w", err)
		}
	}
	return scheme, nil
}

// run returns the run function of a command that needs the cluster. Its context ends at Ctrl-C.
func (s *session) run(work func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		if err := s.connect(); err != nil {
			return err
		}
		return work(ctx, args)
	}
}
