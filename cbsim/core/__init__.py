"""What happens inside replicas, written once as plain functions over records, interpreted or compiled."""
